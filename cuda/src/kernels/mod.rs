//! The kernels: copy, reduce, scale, and their launch.
//!
//! One struct says everything to every kernel, a [`Job`]. The sources are `kernels/*.cu` and the PTX beside them, which the
//! driver compiles for its device when a context's first [`Kernels`] are loaded; `scripts/kernels` makes it. Results are
//! bit for bit those of the host's kernels (`maypole_collectives::reduce`) for two sources.
//!
//! * `job.rs`: the struct. * `bench.rs`: kernels for measurements only.

pub mod bench;
mod job;

use std::sync::{Arc, Weak};

use maypole_collectives::DataType;
use parking_lot::Mutex;

pub use job::{HEADER, Header, Job, MOST_SOURCES, Source, Trouble, factor_bits, op_code};

use crate::driver::{Context, Function, Module, Result, Stream};

/// Threads in a block: `BLOCK` of `kernels/device.h`.
const BLOCK: u32 = 256;

/// Blocks per multiprocessor that all kernels are compiled to fit in at once. More would only wait for them.
const RESIDENT: u32 = 4;

/// Bytes that a thread loads at once.
const VECTOR: u64 = 16;

/// The PTX, by what is in it.
const COPY: &str = include_str!("../../kernels/copy.ptx");
const INTEGER: &str = include_str!("../../kernels/integer.ptx");
const FLOAT: &str = include_str!("../../kernels/float.ptx");
const NARROW: &str = include_str!("../../kernels/narrow.ptx");

/// What a job is run by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Bytes from one source.
    Copy,
    /// Elements of a type, from one to eight sources.
    Reduce(DataType),
    /// Elements of a type, times a factor.
    Scale(DataType),
}

impl Kernel {
    /// Bytes of what [`Job::count`] counts.
    pub const fn element(self) -> u64 {
        match self {
            Kernel::Copy => 1,
            Kernel::Reduce(dtype) | Kernel::Scale(dtype) => dtype.size() as u64,
        }
    }

    /// Vectors that a thread handles in one turn: `UNROLL` of the kernels' folds, or a multiple of it.
    const fn unroll(self) -> u64 {
        match self {
            Kernel::Copy => 4,
            Kernel::Reduce(_) | Kernel::Scale(_) => 2,
        }
    }
}

/// The kernels of one context.
#[derive(Debug)]
pub struct Kernels {
    copy: Function,
    /// By type's code.
    reduce: Vec<Function>,
    scale: Vec<Function>,
    /// The most blocks that run at once.
    most_blocks: u32,
}

impl Kernels {
    /// The kernels of `context`, compiled by the driver at the first call. That takes seconds where the driver has not
    /// kept the result of an earlier process (it does, in `~/.nv/ComputeCache`); kernels are on the device when this
    /// returns, so no launch waits for that.
    ///
    /// # Errors
    /// The driver's.
    pub fn load(context: &Arc<Context>) -> Result<Arc<Kernels>> {
        static LOADED: Mutex<Vec<(Weak<Context>, Weak<Kernels>)>> = Mutex::new(Vec::new());
        // Held while loading, so that ranks that are threads do not compile the same.
        let mut loaded = LOADED.lock();
        loaded.retain(|(_, kernels)| kernels.strong_count() > 0);
        let known = loaded.iter().find(|(of, _)| of.as_ptr() == Arc::as_ptr(context));
        if let Some(kernels) = known.and_then(|(_, kernels)| kernels.upgrade()) {
            return Ok(kernels);
        }
        let kernels = Arc::new(Kernels::compile(context)?);
        loaded.push((Arc::downgrade(context), Arc::downgrade(&kernels)));
        Ok(kernels)
    }

    fn compile(context: &Arc<Context>) -> Result<Kernels> {
        let copy = load(context, COPY)?.function("maypole_copy")?;
        let (integer, float, narrow) = (load(context, INTEGER)?, load(context, FLOAT)?, load(context, NARROW)?);
        let (mut reduce, mut scale) = (Vec::new(), Vec::new());
        for dtype in DataType::ALL {
            let module = match dtype {
                DataType::F32 | DataType::F64 => &float,
                dtype if dtype.is_integer() => &integer,
                _ => &narrow,
            };
            reduce.push(module.function(&format!("maypole_reduce_{dtype}"))?);
            scale.push(module.function(&format!("maypole_scale_{dtype}"))?);
        }
        Ok(Kernels { copy, reduce, scale, most_blocks: RESIDENT * context.multiprocessors() })
    }

    /// Queues a job on a stream of this context. Does not block.
    ///
    /// As many blocks as the job keeps busy, until the device is full: small jobs take few of its multiprocessors.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// Every address in the job is one of this context, readable or writable as its documentation says for `count`
    /// elements, from now until the stream has run the job; the operation is defined on the kernel's type; the number
    /// of sources is one (copy, scale) or one to eight (reduce), or 0.
    #[inline]
    pub unsafe fn launch(&self, stream: &Stream, kernel: Kernel, job: &Job) -> Result<()> {
        let function = match kernel {
            Kernel::Copy => &self.copy,
            Kernel::Reduce(dtype) => &self.reduce[dtype as usize],
            Kernel::Scale(dtype) => &self.scale[dtype as usize],
        };
        let bytes = if job.sources == 0 { 0 } else { job.count * kernel.element() };
        let (blocks, threads) = shape(bytes, kernel.unroll(), self.most_blocks);
        // SAFETY: every kernel takes a `Job`; the rest is the caller's promise.
        unsafe { function.launch(stream, blocks, threads, job) }
    }
}

/// Blocks and threads for a result of `bytes` bytes.
///
/// One block as long as its threads have no more than a turn's work each. Otherwise so many that all threads take the
/// same number of turns: one turn that some do not take would cost as much as one that all take.
fn shape(bytes: u64, unroll: u64, most_blocks: u32) -> (u32, u32) {
    let vectors = bytes.div_ceil(VECTOR);
    let block = u64::from(BLOCK) * unroll;
    if vectors <= block {
        // A thread per vector, and one for each ragged end.
        let threads = (vectors + 2).next_multiple_of(32).min(u64::from(BLOCK));
        return (1, threads as u32);
    }
    let turns = vectors.div_ceil(block * u64::from(most_blocks));
    (vectors.div_ceil(block * turns) as u32, BLOCK)
}

fn load(context: &Arc<Context>, ptx: &str) -> Result<Arc<Module>> {
    let ptx = std::ffi::CString::new(ptx).expect("PTX has no zero inside");
    Module::load(context, &ptx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fit_the_job_and_the_device() {
        let shape = |vectors| shape(VECTOR * vectors, 2, 528);
        assert_eq!(shape(0), (1, 32));
        assert_eq!(shape(30), (1, 32));
        assert_eq!(shape(31), (1, 64));
        assert_eq!(shape(512), (1, 256));
        assert_eq!(shape(513), (2, 256));
        assert_eq!(shape(512 * 528), (528, 256));
        // Two turns of 265 blocks, not one of 528 and one of one.
        assert_eq!(shape(512 * 529), (265, 256));
        assert_eq!(shape(512 * 528 * 7), (528, 256));
        assert_eq!(shape(1 << 50).0, 528);
    }

    /// Every entry is where `compile` looks for it, and takes a `Job`.
    #[test]
    fn every_kernel_is_in_its_ptx() {
        let ptx_of = |dtype: DataType| match dtype {
            DataType::F32 | DataType::F64 => FLOAT,
            dtype if dtype.is_integer() => INTEGER,
            _ => NARROW,
        };
        let mut wanted = vec![(COPY, "maypole_copy".to_string())];
        for dtype in DataType::ALL {
            wanted.push((ptx_of(dtype), format!("maypole_reduce_{dtype}")));
            wanted.push((ptx_of(dtype), format!("maypole_scale_{dtype}")));
        }
        for (ptx, name) in wanted {
            assert!(ptx.contains(&format!(".entry {name}(\n")), "{name} is not in its PTX");
            let parameter = format!("{name}_param_0[{}]", size_of::<Job>());
            assert!(ptx.contains(&parameter), "{name} takes something else than a job");
        }
    }
}

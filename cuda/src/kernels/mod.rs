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

pub use job::{
    Gather, HEADER, Header, Job, MOST_SOURCES, MOST_WORDS, Source, Target, Told, Trouble, factor_bits, op_code,
};

use crate::driver::{Context, Function, Module, Result, Stream};

/// Threads in a block: `BLOCK` of `kernels/device.h`.
const BLOCK: u32 = 256;

/// Blocks per multiprocessor that all kernels are compiled to fit in at once. More would only wait for them.
pub const RESIDENT: u32 = 4;

/// Blocks per multiprocessor on streams of high priority, unless asked for others. There, kernels run beside
/// computation, and [`RESIDENT`] blocks would take every register of a multiprocessor: nothing else could start until
/// they end. Kernels that are bound by memory need loads under way more than multiprocessors, and half of the blocks
/// should come near the same rate. That is reckoned, not measured: `gpu-check` measures 1, 2 and 4.
const BESIDE: u32 = 2;

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

    /// Whether a job is so short that one block runs it, which can say itself that it is done ([`Job::word`]).
    pub const fn fits_a_block(self, job: &Job) -> bool {
        let bytes = if job.sources == 0 { 0 } else { job.count * self.element() };
        bytes.div_ceil(VECTOR) <= BLOCK as u64 * self.unroll()
    }

    /// Vectors that a thread handles in one turn: `UNROLL` of the kernels' folds, or a multiple of it.
    const fn unroll(self) -> u64 {
        match self {
            Kernel::Copy => 4,
            Kernel::Reduce(_) | Kernel::Scale(_) => 2,
        }
    }
}

/// What the driver has compiled for one context.
#[derive(Debug)]
struct Compiled {
    copy: Function,
    gather: Function,
    /// By type's code.
    reduce: Vec<Function>,
    scale: Vec<Function>,
    multiprocessors: u32,
}

/// The kernels of one context, and how much of its device they may take.
#[derive(Debug)]
pub struct Kernels {
    compiled: Arc<Compiled>,
    /// The most blocks that run at once, on ordinary streams and on those of high priority.
    most_blocks: [u32; 2],
}

impl Kernels {
    /// As [`Kernels::limited`], with the number of blocks left to the stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn load(context: &Arc<Context>) -> Result<Arc<Kernels>> {
        Kernels::limited(context, 0)
    }

    /// The kernels of `context`, with at most `blocks` blocks of 256 threads per multiprocessor at once: 1 to
    /// [`RESIDENT`]; 0 stands for `RESIDENT`, and for 2 on streams of high priority, where kernels leave room for what
    /// runs beside them.
    ///
    /// They are compiled by the driver at the first call. That takes seconds where the driver has not kept the result of an
    /// earlier process (it does, in `~/.nv/ComputeCache`); kernels are on the device when this returns, so no launch
    /// waits for that.
    ///
    /// # Errors
    /// The driver's.
    pub fn limited(context: &Arc<Context>, blocks: u32) -> Result<Arc<Kernels>> {
        let compiled = Compiled::of(context)?;
        let most = |unasked| compiled.multiprocessors * if blocks == 0 { unasked } else { blocks.min(RESIDENT) };
        let most_blocks = [most(RESIDENT), most(BESIDE)];
        Ok(Arc::new(Kernels { compiled, most_blocks }))
    }

    /// Queues a job on a stream of this context. Does not block.
    ///
    /// As many blocks as the job keeps busy, until there are as many as [allowed](Kernels::limited): small jobs take few
    /// of the device's multiprocessors.
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
            Kernel::Copy => &self.compiled.copy,
            Kernel::Reduce(dtype) => &self.compiled.reduce[dtype as usize],
            Kernel::Scale(dtype) => &self.compiled.scale[dtype as usize],
        };
        let bytes = if job.sources == 0 { 0 } else { job.count * kernel.element() };
        let (blocks, threads) = shape(bytes, kernel.unroll(), self.most_blocks[usize::from(stream.is_urgent())]);
        // SAFETY: every kernel takes a `Job`; the rest is the caller's promise.
        unsafe { function.launch(stream, [blocks, 1], threads, job) }
    }

    /// Queues several copies as one launch. Each has the same share of the blocks that a job may have.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// As for [`launch`](Kernels::launch), of each source and its target.
    pub unsafe fn gather(&self, stream: &Stream, gather: &Gather) -> Result<()> {
        let rows = gather.job.sources.max(1);
        let longest = gather.to.iter().map(|to| to.bytes).max().unwrap_or(0);
        let most = (self.most_blocks[usize::from(stream.is_urgent())] / rows).max(1);
        let (blocks, threads) = shape(longest, Kernel::Copy.unroll(), most);
        // SAFETY: the kernel takes a `Gather`; the rest is the caller's promise.
        unsafe { self.compiled.gather.launch(stream, [blocks, rows], threads, gather) }
    }
}

impl Compiled {
    fn of(context: &Arc<Context>) -> Result<Arc<Compiled>> {
        static LOADED: Mutex<Vec<(Weak<Context>, Weak<Compiled>)>> = Mutex::new(Vec::new());
        // Held while loading, so that ranks that are threads do not compile the same.
        let mut loaded = LOADED.lock();
        loaded.retain(|(_, compiled)| compiled.strong_count() > 0);
        let known = loaded.iter().find(|(of, _)| of.as_ptr() == Arc::as_ptr(context));
        if let Some(compiled) = known.and_then(|(_, compiled)| compiled.upgrade()) {
            return Ok(compiled);
        }
        let compiled = Arc::new(Compiled::compile(context)?);
        loaded.push((Arc::downgrade(context), Arc::downgrade(&compiled)));
        Ok(compiled)
    }

    fn compile(context: &Arc<Context>) -> Result<Compiled> {
        let copies = load(context, COPY)?;
        let (copy, gather) = (copies.function("maypole_copy")?, copies.function("maypole_gather")?);
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
        Ok(Compiled { copy, gather, reduce, scale, multiprocessors: context.multiprocessors() })
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

    #[test]
    fn fewer_blocks_take_more_turns() {
        // An H100's 132 multiprocessors with 4, 2 and 1 blocks each: half the blocks, twice the turns.
        let vectors = 512 * 528 * 4;
        for (each, turns) in [(4, 4), (2, 8), (1, 16)] {
            assert_eq!(shape(VECTOR * vectors, 2, 132 * each), (132 * each, 256));
            assert_eq!(vectors.div_ceil(512 * 132 * u64::from(each)), turns);
        }
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
        assert!(COPY.contains(&format!("maypole_gather_param_0[{}]", size_of::<Gather>())));
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

    /// Headers, and each vector of an aligned main loop, go past the first-level cache: two loads for each header, and for
    /// each vector that is under way.
    #[test]
    fn what_is_read_once_goes_past_the_first_cache() {
        let ptx = [COPY, INTEGER, FLOAT, NARROW].concat();
        let mut seen = 0;
        for kernel in ptx.split(".entry ").skip(1) {
            let name = kernel.split('(').next().unwrap_or_default();
            let (headers, vectors) = match name {
                "maypole_copy" => (1, 4),
                "maypole_gather" => (MOST_SOURCES, 4),
                scale if scale.starts_with("maypole_scale") => (1, 2),
                _ => (MOST_SOURCES, 2),
            };
            let loads = kernel.matches("ld.global.cg.v4.u32").count();
            assert!(loads >= 2 * headers + vectors, "{name} has {loads} such loads");
            seen += 1;
        }
        assert_eq!(seen, 2 + 2 * DataType::ALL.len());
    }
}

//! What an address is.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::CUpointer_attribute as Attribute;

use super::{Context, CudaError, Functions, Result, probe};

const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// Memory of one device.
    Device {
        /// The device's number in this process.
        ordinal: usize,
        /// The context in which it was allocated, a `CUcontext`; 0 for memory of a pool and for mapped memory, which
        /// belong to none.
        context: usize,
        /// Where the allocation begins.
        base: u64,
        /// The allocation's length in bytes; of mapped memory, that of the mappings that were asked for.
        size: u64,
    },
    /// Host memory that the driver knows: allocated by it or registered with it.
    Pinned {
        /// Where devices see it.
        device: u64,
    },
    /// Memory that moves between host and devices as it is used. Both may use the address.
    Managed,
    /// Nothing that the driver knows: ordinary host memory, memory that was freed, or no memory at all.
    Host,
}

/// What the driver knows about one address.
#[derive(Default)]
struct Known {
    kind: u32,
    ordinal: c_int,
    managed: u32,
    context: usize,
    device: u64,
    base: u64,
    size: usize,
}

impl Known {
    fn of(driver: &Functions, address: u64) -> Result<Known> {
        let mut known = Known::default();
        let asked = [
            (Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (&raw mut known.kind).cast()),
            (Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, (&raw mut known.ordinal).cast()),
            (Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED, (&raw mut known.managed).cast()),
            (Attribute::CU_POINTER_ATTRIBUTE_CONTEXT, (&raw mut known.context).cast()),
            (Attribute::CU_POINTER_ATTRIBUTE_DEVICE_POINTER, (&raw mut known.device).cast()),
            (Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, (&raw mut known.base).cast()),
            (Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE, (&raw mut known.size).cast()),
        ];
        // SAFETY: each place has the size of its attribute, or is larger and was zero.
        unsafe { ask(driver, asked, address) }?;
        Ok(known)
    }

    /// Where it ends.
    fn end(&self) -> u64 {
        self.base.saturating_add(self.size as u64)
    }
}

/// Asks for attributes of an address. For one that the driver does not know it writes zeros and is content.
///
/// # Safety
/// Each place is valid for a write of its attribute.
unsafe fn ask<const N: usize>(driver: &Functions, asked: [(Attribute, *mut c_void); N], address: u64) -> Result<()> {
    let mut attributes = asked.map(|(attribute, _)| attribute as u32);
    let mut places = asked.map(|(_, place)| place);
    // SAFETY: as many attributes as places, and the caller promises the places.
    Ok(unsafe { driver.cuPointerGetAttributes(N as u32, attributes.as_mut_ptr(), places.as_mut_ptr(), address) }?)
}

/// Whether an address lies in memory that was mapped there (`cuMemMap`): memory that neither `cuMemAlloc` nor a pool has
/// allocated.
fn is_mapped(driver: &Functions, address: u64) -> Result<bool> {
    let (mut allocated, mut pool) = (0u32, 0usize);
    let asked = [
        (Attribute::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, (&raw mut allocated).cast()),
        (Attribute::CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, (&raw mut pool).cast()),
    ];
    // SAFETY: a truth value, for which there is room, and a handle.
    unsafe { ask(driver, asked, address) }?;
    Ok(allocated & 0xff == 0 && pool == 0)
}

/// The mapping that an address lies in: where it begins, and where it ends. `None` where nothing is mapped. A context is
/// current.
fn mapping(driver: &Functions, address: u64) -> Option<(u64, u64)> {
    let (mut base, mut size) = (0, 0usize);
    // SAFETY: both places are valid.
    let found = unsafe { driver.cuMemGetAddressRange(&mut base, &mut size, address) };
    let end = base.saturating_add(size as u64);
    (found.is_ok() && (base..end).contains(&address)).then_some((base, end))
}

/// How far memory goes on that was mapped piece by piece, of which the first bytes lie at `address`: from where their
/// piece begins to where that of the last byte before `end` does end, or to where nothing is mapped, or another device's.
/// `None` where the driver does not tell pieces.
fn mapped_around(driver: &Functions, address: u64, end: u64, ordinal: c_int) -> Result<Option<(u64, u64)>> {
    let Some((base, mut reached)) = mapping(driver, address) else { return Ok(None) };
    while end > reached {
        let Some((_, next)) = mapping(driver, reached) else { break };
        let known = Known::of(driver, reached)?;
        if known.kind != DEVICE || known.ordinal != ordinal || !is_mapped(driver, reached)? {
            break;
        }
        reached = next;
    }
    Ok(Some((base, reached)))
}

/// What the `bytes` bytes at `address` are. Costs some hundred nanoseconds, and allocates nothing.
///
/// Memory that was mapped piece by piece into one range of addresses, as PyTorch's `expandable_segments` does, may go on
/// in the next piece. Its attributes are those of the reserved range, in which not everything need be mapped: a kernel
/// that ran into a hole would break the context for good. So the driver is asked about each piece, if a context is
/// current, which takes about as long as its 2 MiB (of large tensors 20) take to be read.
///
/// # Errors
/// [`CudaError::OutOfBounds`] where they begin in an allocation of the device's and end beyond it; those of [`probe`];
/// the driver's.
pub fn locate(address: u64, bytes: u64) -> Result<Where> {
    locate_from(None, address, bytes)
}

/// [`locate`], with a context to be made current where one is needed.
fn locate_from(context: Option<&Context>, address: u64, bytes: u64) -> Result<Where> {
    let driver = probe()?.functions();
    let known = Known::of(driver, address)?;
    match known.kind {
        _ if known.managed & 0xff != 0 => Ok(Where::Managed),
        HOST => Ok(Where::Pinned { device: known.device }),
        DEVICE => {
            let end = address.saturating_add(bytes);
            let (mut base, mut reached) = (known.base, known.end());
            // What belongs to a context was allocated, in one piece.
            if known.context == 0 && is_mapped(driver, address)? {
                let _entered = context.map(Context::enter).transpose()?;
                if let Some(around) = mapped_around(driver, address, end, known.ordinal)? {
                    (base, reached) = around;
                }
            }
            if end > reached {
                return Err(CudaError::OutOfBounds { address, bytes, base, allocated: reached - base });
            }
            let ordinal = known.ordinal.max(0) as usize;
            Ok(Where::Device { ordinal, context: known.context, base, size: reached - base })
        }
        _ => Ok(Where::Host),
    }
}

/// Checks that kernels of `context` may use the `bytes` bytes at `address` as device memory: memory of its device, or
/// managed memory.
///
/// # Errors
/// [`CudaError::NotDevice`] for host memory and for memory that was freed, [`CudaError::WrongDevice`], and those of
/// [`locate`].
pub fn expect_device(context: &Context, address: u64, bytes: u64) -> Result<()> {
    let not = |what| Err(CudaError::NotDevice { address, what });
    match locate_from(Some(context), address, bytes)? {
        Where::Device { ordinal, .. } if ordinal == context.ordinal() => Ok(()),
        Where::Device { ordinal, .. } => {
            Err(CudaError::WrongDevice { address, found: ordinal, expected: context.ordinal() })
        }
        Where::Managed => Ok(()),
        Where::Pinned { .. } => not("it is pinned host memory; pass it as a host buffer"),
        Where::Host => not("the driver does not know it: ordinary host memory, or memory that was freed"),
    }
}

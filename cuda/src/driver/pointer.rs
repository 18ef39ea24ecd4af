//! What an address is.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::CUpointer_attribute as Attribute;

use super::{Context, CudaError, Result, probe};

const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// Memory of one device.
    Device {
        /// The device's number in this process.
        ordinal: usize,
        /// The context in which it was allocated, a `CUcontext`; 0 for memory of a pool, which belongs to none.
        context: usize,
        /// Where the allocation begins.
        base: u64,
        /// The allocation's length in bytes.
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

/// What the `bytes` bytes at `address` are. Costs some hundred nanoseconds, and allocates nothing.
///
/// # Errors
/// [`CudaError::OutOfBounds`] where they begin in an allocation of the device's and end beyond it; those of [`probe`];
/// the driver's.
pub fn locate(address: u64, bytes: u64) -> Result<Where> {
    let driver = probe()?.functions();
    let (mut kind, mut ordinal, mut managed): (u32, c_int, u32) = (0, 0, 0);
    let (mut context, mut device): (*mut c_void, u64) = (std::ptr::null_mut(), 0);
    let (mut base, mut size): (u64, usize) = (0, 0);
    let mut attributes = [
        Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE as u32,
        Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL as u32,
        Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED as u32,
        Attribute::CU_POINTER_ATTRIBUTE_CONTEXT as u32,
        Attribute::CU_POINTER_ATTRIBUTE_DEVICE_POINTER as u32,
        Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR as u32,
        Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE as u32,
    ];
    let mut values: [*mut c_void; 7] = [
        (&raw mut kind).cast(),
        (&raw mut ordinal).cast(),
        (&raw mut managed).cast(),
        (&raw mut context).cast(),
        (&raw mut device).cast(),
        (&raw mut base).cast(),
        (&raw mut size).cast(),
    ];
    // SAFETY: as many attributes as values, each value of the type that its attribute has. For an address that the
    // driver does not know, it writes zeros and is content.
    unsafe {
        let count = attributes.len() as u32;
        driver.cuPointerGetAttributes(count, attributes.as_mut_ptr(), values.as_mut_ptr(), address)
    }?;
    match kind {
        _ if managed & 1 != 0 => Ok(Where::Managed),
        HOST => Ok(Where::Pinned { device }),
        DEVICE => {
            let (size, end) = (size as u64, address.checked_add(bytes));
            if end.is_none_or(|end| end > base + size) {
                return Err(CudaError::OutOfBounds { address, bytes, base, allocated: size });
            }
            Ok(Where::Device { ordinal: ordinal.max(0) as usize, context: context as usize, base, size })
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
    match locate(address, bytes)? {
        Where::Device { ordinal, .. } if ordinal == context.ordinal() => Ok(()),
        Where::Device { ordinal, .. } => {
            Err(CudaError::WrongDevice { address, found: ordinal, expected: context.ordinal() })
        }
        Where::Managed => Ok(()),
        Where::Pinned { .. } => not("it is pinned host memory; pass it as a host buffer"),
        Where::Host => not("the driver does not know it: ordinary host memory, or memory that was freed"),
    }
}

//! Where registered buffers lie, for kernels.
//!
//! A publication that lends names an allocation and an offset in it. Members map an allocation at different addresses,
//! so the reader's kernel looks up where *this* member sees *that* one's part: in a table in device memory, one row per
//! member. The host could not put the address into the job, since it learns what a publication says only when the
//! stream comes to it.
//!
//! One number stands for all memory there is ([`ANYWHERE`]): its offsets are addresses. Members that are threads with one
//! context lend any buffer so, registered or not, as an address means the same to all of them.

use std::sync::Arc;

use crate::driver::{Context, DeviceMemory, Result};

/// Allocations that a publication can name; their numbers are below this.
pub const ALLOCATIONS: usize = 256;

/// The allocation that begins at address 0 for every member. The numbers of registered ones are below this.
pub const ANYWHERE: usize = ALLOCATIONS - 1;

/// For each member, the addresses of its registered allocations by number. Number 0 means "not lent" and is never set, nor
/// is [`ANYWHERE`].
#[derive(Debug)]
pub struct Bases {
    table: DeviceMemory,
    members: usize,
}

impl Bases {
    /// An empty table.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](crate::CudaError::OutOfMemory); the driver's.
    pub fn new(context: &Arc<Context>, members: usize) -> Result<Bases> {
        let table = DeviceMemory::new(context, members * ALLOCATIONS * 8)?;
        table.fill(0, table.bytes(), 0)?;
        Ok(Bases { table, members })
    }

    /// From now on allocation `number` lies, for each member, at one of `addresses`; 0: not any more. Blocks until
    /// kernels see it, some 20 us per member. No kernel that runs uses this number.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// Where the number is 0 or not below [`ANYWHERE`], or there are not as many addresses as members.
    pub fn set(&self, number: usize, addresses: &[u64]) -> Result<()> {
        assert!((1..ANYWHERE).contains(&number) && addresses.len() == self.members);
        for (member, address) in addresses.iter().enumerate() {
            self.table.copy_from_host((member * ALLOCATIONS + number) * 8, &address.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Address of the row of `member`: [`ALLOCATIONS`] addresses.
    pub fn row(&self, member: usize) -> u64 {
        assert!(member < self.members);
        self.table.address() + (member * ALLOCATIONS * 8) as u64
    }
}

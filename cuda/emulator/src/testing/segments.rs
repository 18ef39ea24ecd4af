//! Device memory as PyTorch's `expandable_segments` has it: pieces that are mapped one behind the other.

use libloading::os::unix::Library;
use std::ffi::c_int;

use super::Emulator;
use crate::virtual_memory::{Access, GRANULARITY, Properties};

/// Calls a function of the driver's in the library; panics if it fails.
macro_rules! cu {
    ($library:expr, $name:ident($($arg:expr => $kind:ty),* $(,)?)) => {{
        let name = concat!(stringify!($name), "\0");
        // SAFETY: the type is that of the function in src/virtual_memory.rs.
        let function = unsafe { $library.get::<unsafe extern "C" fn($($kind),*) -> u32>(name.as_bytes()) };
        let function = function.expect("exported");
        // SAFETY: pointers are to variables of these types that live until the call returns.
        assert_eq!(unsafe { function($($arg),*) }, 0, stringify!($name))
    }};
}

/// Some pieces of device memory at addresses that follow each other, and as many addresses of one more piece behind them
/// without memory. Taken back on drop.
pub struct Segments {
    at: u64,
    pieces: usize,
    /// Pieces whose memory was taken away.
    holes: Vec<usize>,
    library: &'static Library,
}

impl Segments {
    /// Bytes of one piece.
    pub const PIECE: usize = GRANULARITY;

    /// Where the first begins.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.pieces * Segments::PIECE
    }

    /// Takes the memory of one piece away, as PyTorch does with what nobody uses between two tensors.
    ///
    /// # Panics
    /// If that piece has none.
    pub fn punch(&mut self, piece: usize) {
        let at = self.at + (piece * Segments::PIECE) as u64;
        cu!(self.library, cuMemUnmap(at => u64, Segments::PIECE => usize));
        self.holes.push(piece);
    }
}

impl Emulator {
    /// `pieces` of them on a device, which that device may use. A context must be current.
    ///
    /// # Panics
    /// If the emulator refuses a call.
    pub fn segments(&'static self, device: usize, pieces: usize) -> Segments {
        let (library, device) = (&self.library, device as c_int);
        let (reserved, mut at) = ((pieces + 1) * Segments::PIECE, 0u64);
        cu!(library, cuMemAddressReserve(&mut at => *mut u64, reserved => usize, 0 => usize, 0 => u64, 0 => u64));
        let (piece, properties) = (Segments::PIECE, Properties::on(device));
        for n in 0..pieces {
            let (mut handle, address) = (0u64, at + (n * piece) as u64);
            cu!(library, cuMemCreate(&mut handle => *mut u64, piece => usize, &properties => *const Properties, 0 => u64));
            cu!(library, cuMemMap(address => u64, piece => usize, 0 => usize, handle => u64, 0 => u64));
            cu!(library, cuMemRelease(handle => u64));
        }
        let access = Access::by(device);
        cu!(library, cuMemSetAccess(at => u64, pieces * piece => usize, &access => *const Access, 1 => usize));
        Segments { at, pieces, holes: Vec::new(), library }
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        for piece in (0..self.pieces).filter(|piece| !self.holes.contains(piece)) {
            let at = self.at + (piece * Segments::PIECE) as u64;
            cu!(self.library, cuMemUnmap(at => u64, Segments::PIECE => usize));
        }
        cu!(self.library, cuMemAddressFree(self.at => u64, self.bytes() + Segments::PIECE => usize));
    }
}

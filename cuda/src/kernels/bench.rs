//! Kernels for measurements: nothing of a collective uses them.

use std::sync::Arc;

use crate::driver::{Context, Function, Result, Stream};

const PTX: &str = include_str!("../../kernels/bench.ptx");

/// What a block of the matrix product computes: this many rows and columns.
const TILE: u64 = 64;

/// The empty kernel and the matrix product.
#[derive(Debug)]
pub struct BenchKernels {
    empty: Function,
    matmul: Function,
}

/// `c = a * b`, for row-major square matrices of f32. The addresses are multiples of 16.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// The left operand.
    pub a: u64,
    /// The right operand.
    pub b: u64,
    /// The result.
    pub c: u64,
    /// Rows and columns of each, a multiple of 64.
    pub side: u64,
}

impl BenchKernels {
    /// Compiles them for the context's device.
    ///
    /// # Errors
    /// The driver's.
    pub fn load(context: &Arc<Context>) -> Result<BenchKernels> {
        let module = super::load(context, PTX)?;
        Ok(BenchKernels {
            empty: module.function("maypole_bench_empty")?,
            matmul: module.function("maypole_bench_matmul")?,
        })
    }

    /// A launch that does nothing: the floor of all others.
    ///
    /// # Errors
    /// The driver's.
    pub fn empty(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the kernel takes 8 bytes and looks at none.
        unsafe { self.empty.launch(stream, [1, 1], 32, &0u64) }
    }

    /// A matrix product, `2 * side^3` floating-point operations.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// If the side is no multiple of 64.
    ///
    /// # Safety
    /// The matrices are there, and nobody else writes them, until the stream has run this; `c` overlaps neither operand.
    pub unsafe fn matmul(&self, stream: &Stream, product: &Product) -> Result<()> {
        assert!(
            product.side.is_multiple_of(TILE),
            "the side of a matrix is a multiple of {TILE}, not {}",
            product.side
        );
        let tiles = (product.side / TILE) as u32;
        // SAFETY: the kernel takes a `Product`; the rest is the caller's promise.
        unsafe { self.matmul.launch(stream, [tiles * tiles, 1], super::BLOCK, product) }
    }
}

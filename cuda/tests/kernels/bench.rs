//! The kernels of measurements: what they compute is right, so that they do the work that they are timed for.

use maypole_cuda::kernels::bench::{BenchKernels, Product};
use maypole_cuda::{DeviceMemory, Stream};

use crate::operands::Numbers;
use crate::rig;

#[test]
fn the_matrix_product_is_one() {
    const SIDE: usize = 192;
    let context = rig::context();
    let kernels = BenchKernels::load(&context).unwrap();
    let stream = Stream::new(&context).unwrap();
    let numbers = &mut Numbers(12);
    // Small integers: their sums are exact in any order.
    let [a, b] = [(); 2].map(|()| (0..SIDE * SIDE).map(|_| numbers.below(17) as f32 - 8.0).collect::<Vec<_>>());
    let [memory_a, memory_b, memory_c] = [(); 3].map(|()| DeviceMemory::new(&context, SIDE * SIDE * 4).unwrap());
    memory_a.copy_from_host(0, bytemuck::cast_slice(&a)).unwrap();
    memory_b.copy_from_host(0, bytemuck::cast_slice(&b)).unwrap();
    kernels.empty(&stream).unwrap();
    let product = Product { a: memory_a.address(), b: memory_b.address(), c: memory_c.address(), side: SIDE as u64 };
    // SAFETY: three matrices of this size, which outlive the stream's work.
    unsafe { kernels.matmul(&stream, &product) }.unwrap();
    stream.synchronize().unwrap();
    let mut c = vec![0f32; SIDE * SIDE];
    memory_c.copy_to_host(0, bytemuck::cast_slice_mut(&mut c)).unwrap();
    for row in 0..SIDE {
        for column in 0..SIDE {
            let expected: f32 = (0..SIDE).map(|k| a[row * SIDE + k] * b[k * SIDE + column]).sum();
            assert_eq!(c[row * SIDE + column], expected, "row {row}, column {column}");
        }
    }
}

//! How fast the reduction kernels are, in bytes of result per second: `cargo bench -p maypole-collectives`.
//!
//! 4 KiB stays in the first-level cache, 128 KiB in the second, 16 MiB in none.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use maypole_collectives::reduce::{Level, copy, divide, reduce, reduce_at, reduce_non_temporal, reduce_to_two};
use maypole_collectives::{DataType, ReduceOp};

const SIZES: [usize; 3] = [4 << 10, 128 << 10, 16 << 20];

/// A buffer of ordinary values, whatever the type: 0x3c in every byte is near 1.0 in the small floats, and 0.01 in f32.
fn operand(bytes: usize) -> Vec<u8> {
    vec![0x3c; bytes]
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20);
    group.warm_up_time(std::time::Duration::from_millis(200));
    group.measurement_time(std::time::Duration::from_millis(600));
    group
}

/// Sums of each type at each size, with the best instructions there are.
fn sums(criterion: &mut Criterion) {
    let mut group = group(criterion, "sum");
    for dtype in DataType::ALL {
        for bytes in SIZES {
            let (a, b, mut dst) = (operand(bytes), operand(bytes), vec![0; bytes]);
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(dtype.name(), bytes), |bencher| {
                bencher.iter(|| {
                    // SAFETY: three buffers of `bytes` bytes.
                    unsafe {
                        let count = black_box(bytes / dtype.size());
                        reduce(ReduceOp::Sum, dtype, dst.as_mut_ptr(), a.as_ptr(), b.as_ptr(), count);
                    }
                })
            });
        }
    }
    group.finish();
}

/// Each operation on each type at 128 KiB, at each level.
fn operations(criterion: &mut Criterion) {
    let bytes = SIZES[1];
    let (a, b, mut dst) = (operand(bytes), operand(bytes), vec![0; bytes]);
    let mut group = group(criterion, "operation");
    group.throughput(Throughput::Bytes(bytes as u64));
    for op in [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::Xor] {
        for dtype in DataType::ALL.into_iter().filter(|&dtype| op.supports(dtype)) {
            for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
                group.bench_function(BenchmarkId::new(format!("{}/{dtype}", op.name()), level), |bencher| {
                    bencher.iter(|| {
                        // SAFETY: three buffers of `bytes` bytes, and the level is supported.
                        unsafe {
                            let count = black_box(bytes / dtype.size());
                            reduce_at(level, op, dtype, dst.as_mut_ptr(), a.as_ptr(), b.as_ptr(), count);
                        }
                    })
                });
            }
        }
    }
    group.finish();
}

/// Two floats: what a call costs.
fn tiny(criterion: &mut Criterion) {
    let mut group = group(criterion, "tiny");
    for dtype in [DataType::F32, DataType::F16, DataType::I64] {
        let (a, b, mut dst) = ([0u64; 2], [0u64; 2], [0u64; 2]);
        group.bench_function(BenchmarkId::new(dtype.name(), 2), |bencher| {
            bencher.iter(|| {
                // SAFETY: three buffers of two elements of at most 8 bytes.
                unsafe {
                    let (op, count) = (black_box(ReduceOp::Sum), black_box(2));
                    reduce(op, dtype, dst.as_mut_ptr().cast(), a.as_ptr().cast(), b.as_ptr().cast(), count);
                }
            })
        });
    }
    group.finish();
}

/// The other passes over f32, and copies.
fn passes(criterion: &mut Criterion) {
    let mut group = group(criterion, "pass");
    for bytes in SIZES {
        let (a, b, mut dst, mut dst2) = (operand(bytes), operand(bytes), vec![0; bytes], vec![0; bytes]);
        let (dst, dst2) = (dst.as_mut_ptr(), dst2.as_mut_ptr());
        let count = bytes / 4;
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("copy", bytes), |bencher| {
            // SAFETY: two buffers of `bytes` bytes.
            bencher.iter(|| unsafe { copy(dst, a.as_ptr(), black_box(bytes), false) })
        });
        group.bench_function(BenchmarkId::new("copy non-temporal", bytes), |bencher| {
            // SAFETY: as above.
            bencher.iter(|| unsafe { copy(dst, a.as_ptr(), black_box(bytes), true) })
        });
        group.bench_function(BenchmarkId::new("sum in place", bytes), |bencher| {
            // SAFETY: two buffers of `count` elements.
            bencher.iter(|| unsafe { reduce(ReduceOp::Sum, DataType::F32, dst, dst, b.as_ptr(), black_box(count)) })
        });
        group.bench_function(BenchmarkId::new("sum to two", bytes), |bencher| {
            // SAFETY: four buffers of `count` elements.
            bencher.iter(|| unsafe {
                reduce_to_two(ReduceOp::Sum, DataType::F32, dst, dst2, a.as_ptr(), b.as_ptr(), black_box(count))
            })
        });
        group.bench_function(BenchmarkId::new("sum non-temporal", bytes), |bencher| {
            // SAFETY: three buffers of `count` elements.
            bencher.iter(|| unsafe {
                reduce_non_temporal(ReduceOp::Sum, DataType::F32, dst, a.as_ptr(), b.as_ptr(), black_box(count))
            })
        });
        for dtype in [DataType::I8, DataType::I32, DataType::I64, DataType::F16, DataType::F32] {
            group.bench_function(BenchmarkId::new(format!("divide {dtype}"), bytes), |bencher| {
                // SAFETY: a buffer of `bytes` bytes.
                bencher.iter(|| unsafe { divide(dtype, dst, black_box(3), bytes / dtype.size()) })
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    sums(&mut criterion);
    operations(&mut criterion);
    tiny(&mut criterion);
    passes(&mut criterion);
    criterion.final_summary();
}

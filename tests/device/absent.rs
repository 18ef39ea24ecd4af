//! A machine without CUDA: everything else works, and whoever asks for a device is told what is missing.

use maypole::cuda::{Context, CudaError, probe};
use maypole::{Communicator, ReduceOp};

use crate::runner::{On, Test, checked, skip};

pub const TESTS: &[Test] = &[Test { name: "absent: without a driver", on: On::Nothing, run: without_a_driver }];

fn without_a_driver() {
    match probe() {
        Ok(driver) => skip(&format!("this machine has a driver, version {}", driver.version())),
        Err(error) => {
            assert!(matches!(error, CudaError::NoDriver { .. }), "{error:?}");
            assert!(error.to_string().contains("libcuda"), "{error}");
        }
    }
    let error = Context::primary(0).expect_err("no driver, so no context").to_string();
    assert!(error.contains("libcuda"), "{error}");
    assert!(Context::current().is_err());
    // SAFETY: it is refused before the handle is looked at.
    assert!(unsafe { maypole::cuda::Stream::adopt(std::ptr::null_mut()) }.is_err());
    let sums: Vec<u32> = std::thread::scope(|scope| {
        let ranks = Communicator::threads(3).unwrap().into_iter().map(|comm| {
            scope.spawn(move || {
                let mut sum = [comm.rank() as u32 + 1];
                comm.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
                sum[0]
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert_eq!(sums, [6; 3]);
    checked(5);
}

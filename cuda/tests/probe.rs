//! What is found on machines without a driver, with one that is too old, or with something else of that name: an error
//! that says so, never a panic.
//!
//! Nothing here loads the emulator into its own process; each finding is made once per process, so the tests start
//! themselves again, with another library in the loader's path.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use maypole_cuda::{Context, CudaError, Stream, locate, probe};
use maypole_cuda_emulator::testing;

/// Whether the system has a driver, by the loader's own list.
fn has_driver() -> bool {
    let listed = Command::new("ldconfig").arg("-p").output();
    listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains("libcuda.so"))
}

/// In the process that was started with a variable that says so.
fn is_child() -> bool {
    std::env::var_os("MAYPOLE_TEST_CHILD").is_some()
}

/// Runs test `name` in a process of its own.
fn run(name: &str, environment: Vec<(OsString, OsString)>, switch: (&str, &str)) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("MAYPOLE_TEST_CHILD", "1").envs(environment);
    assert!(command.env(switch.0, switch.1).status().unwrap().success());
}

#[test]
fn without_a_driver_every_way_in_says_so() {
    if has_driver() {
        eprintln!("skipped: this machine has a driver");
        return;
    }
    let is_missing = |error: CudaError| {
        assert!(matches!(&error, CudaError::NoDriver { why } if why.contains("libcuda")), "{error}");
        assert!(error.to_string().contains("host memory work without one"), "{error}");
    };
    is_missing(probe().unwrap_err());
    is_missing(probe().unwrap_err());
    is_missing(Context::primary(0).unwrap_err());
    is_missing(Context::current().unwrap_err());
    is_missing(locate(0x1000, 16).unwrap_err());
    // SAFETY: the default stream may always be named.
    is_missing(unsafe { Stream::adopt(std::ptr::null_mut()) }.unwrap_err());
}

#[test]
fn a_library_without_the_functions_is_named() {
    if is_child() {
        let error = probe().unwrap_err();
        assert_eq!(error, CudaError::NoFunction { symbol: "cuInit" });
        return;
    }
    // The C library's mathematics, under the driver's name.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let other = maps.split_whitespace().find(|path| path.contains("/libc.so.6")).expect("a C library is loaded");
    let folder = std::env::temp_dir().join(format!("maypole-no-driver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so.1", "libcuda.so"] {
        let _ = std::fs::remove_file(folder.join(name));
        std::os::unix::fs::symlink(Path::new(other), folder.join(name)).unwrap();
    }
    run("a_library_without_the_functions_is_named", Vec::new(), ("LD_LIBRARY_PATH", folder.to_str().unwrap()));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_driver_that_is_too_old_is_named() {
    if is_child() {
        let error = probe().unwrap_err();
        assert_eq!(error, CudaError::TooOld { found: 11_080, needed: 12_040 });
        assert!(error.to_string().contains("supports CUDA 11.8, and 12.4 is needed"), "{error}");
        return;
    }
    let old = ("MAYPOLE_EMULATOR_DRIVER_VERSION", "11080");
    run("a_driver_that_is_too_old_is_named", testing::environment(), old);
}

#[test]
fn a_driver_without_a_device_is_named() {
    if is_child() {
        let error = probe().unwrap_err();
        assert!(matches!(error, CudaError::NoDevice { .. }), "{error}");
        assert!(error.to_string().contains("CUDA_VISIBLE_DEVICES"), "{error}");
        return;
    }
    let none = ("MAYPOLE_EMULATOR_DEVICES", "0");
    run("a_driver_without_a_device_is_named", testing::environment(), none);
}

/// A driver that refuses at the door is asked once, and remembered.
#[test]
fn a_driver_that_refuses_is_quoted() {
    if is_child() {
        for _ in 0..2 {
            let error = probe().unwrap_err().to_string();
            assert!(error.contains("cuInit") && error.contains("CUDA_ERROR_UNKNOWN"), "{error}");
        }
        return;
    }
    let refuses = ("MAYPOLE_EMULATOR_FAIL", "cuInit:1:CUDA_ERROR_UNKNOWN");
    run("a_driver_that_refuses_is_quoted", testing::environment(), refuses);
}

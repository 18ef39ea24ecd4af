//! MPI and Maypole in one process, in either order, as programs have them that move from the one to the other.
//!
//! The ranks are this test's binary again. MPI's library is loaded while they run, so that nothing need be compiled for
//! each MPI there is; what it offers is the same by name everywhere.

use std::ffi::c_int;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use maypole::{Communicator, ReduceOp};

use super::*;

/// When each begins and ends: M and m are MPI's `Init` and `Finalize`, W and w a world of Maypole's.
const ORDERS: [&str; 5] = ["MWwm", "MWmw", "WMmw", "WMwm", "WwMWwWwm"];

/// One rank: `MAYPOLE_TEST_PART` is an order and MPI's library.
#[test]
fn rank() {
    let Ok(part) = std::env::var("MAYPOLE_TEST_PART") else { return };
    let (order, library) = part.split_once(' ').expect("two words");
    // Rust's programs ignore it; C's are ended by it, and those are what this is about.
    // SAFETY: the default action is no function.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: loading runs the initialisers of an MPI library, which is what MPI programs do.
    let library = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }.expect("MPI's library");
    let mpi = |name: &[u8]| -> unsafe extern "C" fn(usize, usize) -> c_int {
        // SAFETY: below it is called as the function of that name has it: `Init` with two null pointers, and `Finalize`,
        // which takes nothing and so does not look at them.
        *unsafe { library.get(name) }.expect("a function that every MPI has")
    };
    let mut world = None;
    for step in order.chars() {
        match step {
            // SAFETY: see above; each is called once, in this order.
            'M' => assert_eq!(unsafe { mpi(b"MPI_Init\0")(0, 0) }, 0),
            // SAFETY: see above.
            'm' => assert_eq!(unsafe { mpi(b"MPI_Finalize\0")(0, 0) }, 0),
            'W' => world = Some(Communicator::from_env().expect("a world")),
            'w' => {
                let world = world.take().expect("a world");
                for _ in 0..10 {
                    let mut sum = [0u32];
                    world.all_reduce(&[1], &mut sum, ReduceOp::Sum).expect("a sum");
                    assert_eq!((sum[0], world.size()), (3, 3));
                }
            }
            other => panic!("{other}"),
        }
    }
    // Kept until the end, as MPI's are.
    std::mem::forget(library);
    println!("{order} works");
}

impl Launcher {
    /// MPI and Maypole take turns in three ranks, in these orders, and the launcher finds no fault with how they end.
    fn beside_mpi(&self, library: &Path, orders: &[&str]) {
        let this = std::env::current_exe().unwrap();
        for order in orders {
            let part = format!("{order} {}", library.display());
            let command = [this.to_str().unwrap(), "--exact", "mpi::rank", "--nocapture"];
            let test = format!("{}_beside_mpi", self.name);
            let Some(out) = self.run_with(&test, &[("MAYPOLE_TEST_PART", &part)], 3, &command) else { return };
            let said = text(&out.stdout);
            assert!(out.status.success(), "{order}: {:?} {said}{}", out.status, text(&out.stderr));
            assert_eq!(said.matches(&format!("{order} works")).count(), 3, "{said}{}", text(&out.stderr));
        }
    }

    /// The library that lies beside this launcher's program, or `None` after saying why `test` is skipped.
    fn library(&self, name: &str) -> Option<PathBuf> {
        let program = self.find(&format!("{}_beside_mpi", self.name))?;
        let path = Path::new(&program).ancestors().nth(2)?.join("lib").join(name);
        if path.exists() {
            return Some(path);
        }
        let test = format!("{}_beside_mpi", self.name);
        let _ = writeln!(std::io::stderr(), "skipped: launchers::{test}: there is no {}", path.display());
        None
    }
}

#[test]
fn openmpi_beside_mpi() {
    OPEN_MPI.beside_mpi(Path::new("libmpi.so.40"), &ORDERS);
}

#[test]
fn mpich_beside_mpi() {
    let Some(library) = MPICH.library("libmpi.so.12") else { return };
    MPICH.beside_mpi(&library, &ORDERS);
}

#[test]
fn intelmpi_beside_mpi() {
    let Some(library) = INTEL.library("libmpi.so.12") else { return };
    // Its network layer is a package of its own, which the system may have (Debian and Ubuntu: libfabric1).
    // SAFETY: loading runs the initialisers of a library that Intel's MPI would load.
    if let Err(why) = unsafe { Library::open(Some("libfabric.so.1"), RTLD_NOW) } {
        let _ = writeln!(std::io::stderr(), "skipped: launchers::intelmpi_beside_mpi: {why}");
        return;
    }
    INTEL.beside_mpi(&library, &ORDERS);
}

#[test]
fn openmpi5_beside_mpi() {
    let Some(library) = OPEN_MPI_5.library("libmpi.so.40") else { return };
    // Where anybody else has initialised PMIx before, its `MPI_Init` fails (5.0.11): it must come first.
    OPEN_MPI_5.beside_mpi(&library, &["MWwm", "MWmw"]);
}

//! Whose exit status the job has, where several ranks end badly.

use maypole::{Communicator, Error, Verdict};

use super::ranks::{ROLE, role};
use super::*;

#[test]
fn the_rank_that_aborts_gives_the_status() {
    const ABORTS: usize = 2;
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        comm.barrier().unwrap();
        if comm.rank() == ABORTS {
            comm.abort("it cannot go on");
            // By now the others have ended, if nothing keeps them.
            std::thread::sleep(Duration::from_millis(500));
            let status = if role == "ends badly" { 42 } else { 0 };
            // SAFETY: no conditions.
            unsafe { libc::_exit(status) };
        }
        let told = comm.barrier().unwrap_err();
        assert!(matches!(told, Error::Failed { verdict: Verdict::Aborted { rank: ABORTS, .. }, .. }), "{told}");
        // SAFETY: no conditions.
        unsafe { libc::_exit(7) };
    });
    let test = std::env::current_exe().unwrap();
    let rank = "--exact blame::the_rank_that_aborts_gives_the_status --nocapture --test-threads=1";
    for (how, status) in [("ends badly", 42), ("ends well", 7)] {
        for transport in ["shm", "tcp"] {
            let (role, transport) = (format!("{ROLE}={how}"), format!("MAYPOLE_TRANSPORT={transport}"));
            let out = run(&["-n", "4", "-x", &role, "-x", &transport], &format!("exec {} {rank}", test.display()));
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(status), "{how}: {said}");
            let blamed = said.lines().filter(|line| line.contains("exited with status")).collect::<Vec<_>>();
            assert_eq!(blamed.len(), 1, "{said}");
            let named = format!("rank {ABORTS} (pid ");
            assert_eq!(blamed[0].contains(&named), status == 42, "{said}");
        }
    }
}

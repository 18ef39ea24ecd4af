//! `MAYPOLE_PORTS` behind a firewall that lets nothing else through: nftables' rules in a network namespace of the
//! test's own. That needs root, `ip` and `nft`; where something is missing, the tests say `skipped:` and why.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// A firewall that lets new connections in at 20000 to 20100 only, on the loopback interface too.
const RULES: &str = "\
table inet guard {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        tcp dport 20000-20100 accept
    }
}
";

/// `maypole run -n RANKS ARGS... -- all_reduce_perf` over TCP behind the firewall. `None` after saying why `test` is
/// skipped.
fn run(test: &str, ranks: &str, args: &[&str]) -> Option<Output> {
    let skip = |why: &str| {
        let _ = writeln!(std::io::stderr(), "skipped: ports::{test}: {why}");
        None
    };
    if !nix::unistd::geteuid().is_root() {
        return skip("a network namespace needs root");
    }
    let script = format!("ip link set lo up && nft list ruleset || exit 99; nft '{RULES}' || exit 98; exec \"$@\"");
    let mut command = Command::new("timeout");
    command.args([
        "--kill-after=5",
        "120",
        "unshare",
        "--net",
        "sh",
        "-c",
        &script,
        "sh",
        env!("CARGO_BIN_EXE_maypole"),
    ]);
    command.args(["run", "-n", ranks, "-x", "MAYPOLE_TRANSPORT=tcp", "-x", "MAYPOLE_CONNECT_TIMEOUT=10"]).args(args);
    command.args([
        "--",
        env!("CARGO_BIN_EXE_all_reduce_perf"),
        "-b",
        "8",
        "-e",
        "64K",
        "-f",
        "64",
        "-n",
        "5",
        "-w",
        "1",
    ]);
    for name in ["RANK", "WORLD_SIZE", "MAYPOLE_KEY"] {
        command.env_remove(name);
    }
    match command.stdin(Stdio::null()).output() {
        Err(error) => skip(&format!("timeout, unshare: {error}")),
        Ok(out) if out.status.code() == Some(99) || text(&out).contains("unshare: ") => skip(&text(&out)),
        Ok(out) => Some(out),
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn ranks_meet_and_work_on_the_ports_that_are_let_through() {
    let name = "ranks_meet_and_work_on_the_ports_that_are_let_through";
    let Some(out) = run(name, "6", &["-x", "MAYPOLE_PORTS=20000-20100"]) else { return };
    assert!(out.status.success() && text(&out).contains("Out of bounds values : 0 OK"), "{}", text(&out));
    // The firewall does keep everything else out.
    let out = run(name, "2", &[]).expect("it ran before");
    assert!(!out.status.success() && text(&out).contains("could not reach the meeting point"), "{}", text(&out));
}

#[test]
fn a_range_that_is_too_small_says_so() {
    // One port is where they meet, so the last of three ranks finds none.
    let Some(out) = run("a_range_that_is_too_small_says_so", "3", &["-x", "MAYPOLE_PORTS=20000-20002"]) else { return };
    let text = text(&out);
    assert!(!out.status.success() && text.contains("none of the 3 ports of MAYPOLE_PORTS=20000-20002"), "{text}");
    assert!(text.contains(&nix::unistd::gethostname().unwrap().to_string_lossy().into_owned()), "{text}");
}

//! What others on the network can read, and what becomes of what they change.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maypole::{Communicator, ReduceOp};

use crate::between::{Between, Carries, Towards};
use crate::job::{in_order, maypole, start};
use crate::net::{Cluster, address, on_own_thread, skip};
use crate::ranks::{Job, PATIENCE, role, say};

const ENCRYPT: (&str, &str) = ("MAYPOLE_ENCRYPT", "1");
/// A text that the ranks send each other, over and over.
const PATTERN: &[u8] = b"a text that everybody recognises";

/// The part of each rank: all_reduce until something goes wrong, then say what. With `LATE`, rank 1 lets the others wait,
/// so that they ask, through the hub, what it does.
fn sum_until_it_fails() {
    let comm = Communicator::from_env().unwrap();
    let mut buffer = vec![0.0f32; 50_000];
    let late = std::env::var_os("LATE").is_some() && comm.rank() == 1;
    for call in 1.. {
        buffer.fill(1.0);
        if late {
            std::thread::sleep(Duration::from_millis(100));
        }
        if let Err(error) = comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum) {
            return say(error);
        }
        match buffer.iter().position(|x| *x != comm.size() as f32) {
            Some(at) => return say(format!("a wrong sum: {} at {at}", buffer[at])),
            None if call == 3 => say("works"),
            None => {}
        }
    }
}

/// Three hosts, the second behind somebody who changes one byte while the ranks are in an all_reduce: what each rank
/// says then.
fn changed(test: &str, what: (Carries, Towards), settings: &[(&str, &str)]) -> Option<Vec<String>> {
    role(|_| sum_until_it_fails());
    let test = format!("strangers::{test}");
    let cluster = Cluster::new(&test, 3, "1gbit")?;
    let between = Between::new(&cluster, 1);
    let mut extra = vec![("MASTER_PORT", "29500"), ("MAYPOLE_TIMEOUT", "20")];
    extra.extend(settings);
    let mut job = start(&cluster, &in_order(&[1, 1, 1]), &test, "rank", &extra);
    assert!(job.hear(&[0, 1, 2]).iter().all(|(_, line)| line == "works"));
    let begun = Instant::now();
    between.change(what.0, what.1);
    let said: Vec<String> = job.hear(&[0, 1, 2]).into_iter().map(|(_, line)| line).collect();
    let after = begun.elapsed();
    said.iter().for_each(|line| println!("{what:?}, after {after:.2?}: {line}"));
    assert_eq!(between.changed(), 1);
    assert!(after < Duration::from_secs(15), "found only at the deadline");
    job.end(&[0, 1, 2]);
    Some(said)
}

/// All ranks have the same verdict, on the link between these two.
fn expect_link(said: &[String], names: &[&str]) {
    let verdict = |line: &String| line.split_once(": ").map(|(_, verdict)| verdict.to_string());
    let first = verdict(&said[0]);
    assert!(first.is_some() && said.iter().all(|line| verdict(line) == first), "not the same on all: {said:#?}");
    for name in names {
        assert!(said[0].contains(name), "it should say {name:?}: {}", said[0]);
    }
}

const CONTROL: [&str; 4] = ["rank 1 on host host1", "changed on the way", "between its host", "host host0"];

#[test]
fn a_changed_byte_of_a_frame_to_the_hub_is_a_verdict_on_the_link() {
    let way = (Carries::Control, Towards::Others);
    let said = changed("a_changed_byte_of_a_frame_to_the_hub_is_a_verdict_on_the_link", way, &[]);
    said.iter().for_each(|said| expect_link(said, &CONTROL));
}

#[test]
fn a_changed_byte_of_a_frame_of_the_hub_is_a_verdict_on_the_link() {
    let way = (Carries::Control, Towards::Host);
    let said = changed("a_changed_byte_of_a_frame_of_the_hub_is_a_verdict_on_the_link", way, &[("LATE", "1")]);
    said.iter().for_each(|said| expect_link(said, &CONTROL));
}

#[test]
fn a_changed_byte_of_an_encrypted_frame_is_a_verdict_on_the_link() {
    let way = (Carries::Control, Towards::Others);
    let said = changed("a_changed_byte_of_an_encrypted_frame_is_a_verdict_on_the_link", way, &[ENCRYPT]);
    said.iter().for_each(|said| expect_link(said, &CONTROL));
}

/// In both directions, and on each of several connections.
#[test]
fn a_changed_byte_of_encrypted_data_is_a_verdict_on_the_link_and_no_wrong_sum() {
    const TEST: &str = "a_changed_byte_of_encrypted_data_is_a_verdict_on_the_link_and_no_wrong_sum";
    for (towards, connections) in [(Towards::Host, "1"), (Towards::Others, "1"), (Towards::Others, "4")] {
        let settings = [ENCRYPT, ("MAYPOLE_CONNECTIONS", connections)];
        let Some(said) = changed(TEST, (Carries::Data, towards), &settings) else { return };
        expect_link(&said, &["lost its link to rank", "rank 1 ", "bytes were changed on the way", "10.88.0.2"]);
    }
}

/// The test above can fail: without encryption TCP's checksum is all there is, and who changes bytes makes a new one.
#[test]
fn a_changed_byte_of_plain_data_is_no_verdict_on_the_link() {
    let way = (Carries::Data, Towards::Others);
    let Some(said) = changed("a_changed_byte_of_plain_data_is_no_verdict_on_the_link", way, &[]) else { return };
    assert!(said.iter().any(|line| line.contains("a wrong sum") || line.contains("disagree")), "{said:#?}");
}

/// The part of each rank: the pattern by every way that leads to other hosts.
fn spread_the_pattern() {
    let comm = Communicator::from_env().unwrap();
    let (me, size) = (comm.rank(), comm.size());
    let own = PATTERN.repeat(4000);
    let mut got = vec![0u8; own.len()];
    for root in 0..size {
        got.copy_from_slice(&own);
        comm.broadcast(&mut got, root).unwrap();
        assert!(got == own);
    }
    comm.send_recv(&own, (me + 1) % size, &mut got, (me + size - 1) % size).unwrap();
    assert!(got == own);
    comm.barrier().unwrap();
    say("done");
}

/// Everything that passes host 0 while a world of two hosts spreads the pattern.
fn overheard(test: &str, settings: &[(&str, &str)]) -> Option<Vec<u8>> {
    role(|_| spread_the_pattern());
    let test = format!("strangers::{test}");
    if Command::new("tcpdump").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        skip(&test, "tcpdump is not installed");
        return None;
    }
    let cluster = Cluster::new(&test, 2, "1gbit")?;
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("overheard-{}", std::process::id()));
    let mut tcpdump = Command::new("tcpdump");
    // Whole packets, a buffer of 64 MiB, and no change of user, who could not write there.
    tcpdump.args(["-i", "eth0", "-s", "0", "-B", "65536", "-U", "-Z", "root", "-w"]).arg(&file).stderr(Stdio::piped());
    let mut tcpdump = cluster.hosts()[0].spawn(&mut tcpdump);
    let mut said = BufReader::new(tcpdump.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "tcpdump does not listen");
    }
    let layout = in_order(&[2, 2]);
    let mut job = start(&cluster, &layout, &test, "rank", settings);
    assert!(job.hear(&[0, 1, 2, 3]).iter().all(|(_, line)| line == "done"));
    job.end(&[0, 1, 2, 3]);
    // It writes what it still has when it is interrupted.
    let pid = nix::unistd::Pid::from_raw(tcpdump.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    tcpdump.wait().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    Some(bytes)
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|seen| seen == pattern)
}

/// What an onlooker reads of a job: its data, by collectives and by messages, and what its ranks tell each other.
#[test]
fn an_onlooker_reads_nothing_of_an_encrypted_job() {
    const TEST: &str = "an_onlooker_reads_nothing_of_an_encrypted_job";
    // Which of the two a process of the test is to play is in its settings, so that one part will do.
    let Some(plain) = overheard(TEST, &[]) else { return };
    // The text of the settings is in the first frame of every rank.
    let frame = b"MAYPOLE_ALGORITHM=";
    assert!(contains(&plain, PATTERN) && contains(&plain, frame), "nothing is overheard, not even what is said openly");
    for connections in ["1", "4"] {
        let Some(sealed) = overheard(TEST, &[ENCRYPT, ("MAYPOLE_CONNECTIONS", connections)]) else { return };
        assert!(sealed.len() > 2 * 4000 * PATTERN.len(), "only {} bytes are overheard", sealed.len());
        // Any eight bytes of it in a row.
        for part in PATTERN.windows(8).step_by(4) {
            assert!(!contains(&sealed, part), "{:?} can be read", String::from_utf8_lossy(part));
        }
        assert!(!contains(&sealed, frame), "frames can be read");
    }
}

/// What a world whose key others can guess says of it: once, where ranks are on several hosts.
#[test]
fn a_key_that_an_address_gives_is_warned_about_on_several_hosts() {
    const TEST: &str = "strangers::a_key_that_an_address_gives_is_warned_about_on_several_hosts";
    let Some(cluster) = Cluster::new(TEST, 2, "1gbit") else { return };
    let key = ("MAYPOLE_KEY", "a secret of more than sixteen bytes");
    for (layout, settings, warnings) in [(&[0, 1, 1], &[][..], 1), (&[0, 1, 1], &[key], 0), (&[0, 0, 0], &[], 0)] {
        // A world is made there twice.
        let ends = maypole(&cluster, layout, &["info", "--launch"], settings);
        let texts = ends.iter().map(|end| String::from_utf8_lossy(&end.stderr)).collect::<Vec<_>>();
        assert!(ends.iter().all(|end| end.status.success()), "{texts:#?}");
        let said = texts.concat();
        assert_eq!(said.matches("derived from the meeting point's address").count(), warnings, "{layout:?}: {said}");
        let parts = ["host0, host1", "MAYPOLE_KEY", "MAYPOLE_REQUIRE_KEY=1"];
        assert!(warnings == 0 || parts.iter().all(|part| texts[0].contains(part)), "{said}");
    }
    for end in maypole(&cluster, &[0, 1], &["info", "--launch"], &[("MAYPOLE_REQUIRE_KEY", "1")]) {
        let said = String::from_utf8_lossy(&end.stderr).into_owned() + &String::from_utf8_lossy(&end.stdout);
        assert!(!end.status.success() && said.contains("MAYPOLE_KEY is not set"), "{said}");
    }
}

/// Where ranks meet at an address, too, rank 0 listens at the interface that was asked for and at no other.
#[test]
fn the_meeting_point_is_at_the_interface_that_was_asked_for() {
    const TEST: &str = "strangers::the_meeting_point_is_at_the_interface_that_was_asked_for";
    role(|_| match Communicator::from_env().and_then(|comm| comm.barrier()) {
        Ok(()) => say("met"),
        Err(error) => say(error),
    });
    let Some(cluster) = Cluster::new(TEST, 2, "1gbit") else { return };
    let call = |ip: &str| {
        on_own_thread(|| {
            cluster.hosts()[0].enter();
            TcpStream::connect((ip, 29500)).is_ok()
        })
    };
    for (interface, elsewhere) in [(&[("MAYPOLE_INTERFACE", "eth0")][..], false), (&[], true)] {
        let place = |rank| (rank, 2, vec![("MASTER_ADDR", address(0)), ("MASTER_PORT", "29500".to_string())]);
        let rank = |rank: usize| {
            Job::start_by(TEST, "", &[place(rank)], interface, |_, command| cluster.hosts()[rank].spawn(command))
        };
        let mut first = rank(0);
        let begun = Instant::now();
        while !call(&address(0)) {
            assert!(begun.elapsed() < PATIENCE, "rank 0 does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(call("127.0.0.1"), elsewhere, "{interface:?}");
        let mut second = rank(1);
        assert!(first.hear(&[0]).iter().chain(&second.hear(&[0])).all(|(_, line)| line == "met"));
        first.end(&[0]);
        second.end(&[0]);
    }
}

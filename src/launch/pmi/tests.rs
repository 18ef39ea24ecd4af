//! Against a mpiexec on the other end of a socket pair.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use maypole_transports::lock::Mutex;

use super::board::key;
use super::connection::{Connection, word};
use crate::running::Limit;

/// A mpiexec for one rank on the other end of a socket pair; answers with `vallen_max` and
/// remembers what was put.
fn mpiexec(vallen_max: usize) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut space = std::collections::HashMap::new();
        let mut out = theirs.try_clone().unwrap();
        for line in BufReader::new(theirs).lines().map_while(|line| line.ok()) {
            let answer = match word(&line, "cmd").unwrap() {
                "init" => "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=2".to_string(),
                "get_maxes" => format!("cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max={vallen_max}"),
                "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_1_0".to_string(),
                "put" => {
                    let (key, value) = (word(&line, "key").unwrap(), word(&line, "value").unwrap());
                    assert!(value.len() < vallen_max && line.len() < 1024, "{line}");
                    space.insert(key.to_string(), value.to_string());
                    "cmd=put_result rc=0 msg=success".to_string()
                }
                "barrier_in" => "cmd=barrier_out tag=0".to_string(),
                "get" => match space.get(word(&line, "key").unwrap()) {
                    Some(value) => format!("cmd=get_result rc=0 msg=success value={value}"),
                    None => "cmd=get_result rc=-1 msg=key_not_found value=unknown".to_string(),
                },
                _ => break,
            };
            // In two parts, since nothing promises a line per read.
            let (head, tail) = answer.split_at(answer.len() / 2);
            out.write_all(head.as_bytes()).unwrap();
            out.write_all(format!("{tail}\n").as_bytes()).unwrap();
        }
    });
    ours
}

/// A mpiexec for so many ranks; barriers end when all are there.
fn mpiexec_of(ranks: usize) -> Vec<UnixStream> {
    let space = std::sync::Arc::new(Mutex::new((std::collections::HashMap::<String, String>::new(), Vec::new())));
    let serve = |_| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let space = space.clone();
        std::thread::spawn(move || {
            let mut out = theirs.try_clone().unwrap();
            for line in BufReader::new(theirs).lines().map_while(|line| line.ok()) {
                let (kept, here) = &mut *space.lock();
                let answer = match word(&line, "cmd").unwrap() {
                    "init" => "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=2".to_string(),
                    "get_maxes" => "cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024".to_string(),
                    "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_1_0".to_string(),
                    "put" => {
                        let (key, value) = (word(&line, "key").unwrap(), word(&line, "value").unwrap());
                        match kept.insert(key.to_string(), value.to_string()) {
                            None => "cmd=put_result rc=0 msg=success".to_string(),
                            Some(_) => "cmd=put_result rc=-1 msg=duplicate_key".to_string(),
                        }
                    }
                    "barrier_in" => {
                        here.push(out.try_clone().unwrap());
                        if here.len() == ranks {
                            here.drain(..).for_each(|mut rank| rank.write_all(b"cmd=barrier_out\n").unwrap());
                        }
                        continue;
                    }
                    "get" => match kept.get(word(&line, "key").unwrap()) {
                        Some(value) => format!("cmd=get_result rc=0 msg=success value={value}"),
                        None => "cmd=get_result rc=-1 msg=key_not_found value=unknown".to_string(),
                    },
                    _ => break,
                };
                out.write_all(format!("{answer}\n").as_bytes()).unwrap();
            }
        });
        ours
    };
    (0..ranks).map(serve).collect()
}

#[test]
fn ranks_that_have_not_tried_equally_often_meet_at_one_board() {
    let long = Duration::from_secs(30);
    let mut ranks: Vec<Connection> = mpiexec_of(3)
        .into_iter()
        .enumerate()
        .map(|(rank, stream)| Connection::new(File::from(OwnedFd::from(stream)), rank, 3))
        .map(|connection| connection.greet(&Limit::after(long)).unwrap())
        .collect();
    let mut attempt = |rank: usize, notice: &[u8], within: Duration| {
        let limit = Limit::after(within);
        let posted = if rank == 0 { ranks[0].post(notice, &limit) } else { Ok(()) };
        posted.and_then(|()| ranks[rank].read(&limit))
    };
    // Ranks 0 and 1 try twice in vain, rank 2 not at all.
    for notice in [b"one", b"two"] {
        for rank in [0, 1] {
            let error = attempt(rank, notice, Duration::from_millis(50)).unwrap_err().to_string();
            assert!(error.contains("not every rank has come"), "{error}");
        }
    }
    // When it comes it finds what rank 0 has left, as does rank 1, and all are together at the next
    // board.
    for rank in [2, 1] {
        assert_eq!(attempt(rank, b"", long).unwrap(), b"one");
    }
    std::thread::scope(|scope| {
        let mut ends: Vec<_> = ranks.iter_mut().enumerate().collect();
        let reads: Vec<_> = ends
            .drain(..)
            .map(|(rank, connection)| {
                scope.spawn(move || {
                    let limit = Limit::after(long);
                    if rank == 0 {
                        connection.post(b"three", &limit).unwrap();
                    }
                    connection.read(&limit).unwrap()
                })
            })
            .collect();
        assert!(reads.into_iter().all(|read| read.join().unwrap() == b"three"));
    });
}

#[test]
fn a_board_in_short_and_long_values() {
    let limit = &Limit::after(Duration::from_secs(10));
    for vallen_max in [16, 64, 256, 1024] {
        let stream = mpiexec(vallen_max);
        let mut rank0 = Connection::new(File::from(OwnedFd::from(stream)), 0, 1).greet(limit).unwrap();
        for length in [0usize, 1, 128, 700] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            rank0.post(&bytes, limit).unwrap();
            assert_eq!(rank0.read(limit).unwrap(), bytes, "{length} bytes, vallen_max {vallen_max}");
        }
        let error = rank0.read(limit).unwrap_err().to_string();
        assert!(error.contains("rc=0") && error.contains("rc=-1"), "{error}");
    }
}

#[test]
fn silence_and_hanging_up_are_errors() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connection = Connection::new(File::from(OwnedFd::from(ours)), 3, 8);
    let error = connection.greet(&Limit::after(Duration::from_millis(50))).err().unwrap().to_string();
    assert!(error.contains("rank 3 of 8") && error.contains("does not answer"), "{error}");
    drop(theirs);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let connection = Connection::new(File::from(OwnedFd::from(ours)), 3, 8);
    let error = connection.greet(&Limit::after(Duration::from_secs(5))).err().unwrap().to_string();
    assert!(error.contains("lost the connection to mpiexec"), "{error}");
}

#[test]
fn endless_lines_and_pieces_end() {
    let limit = &Limit::after(Duration::from_secs(10));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
    let connection = Connection::new(File::from(OwnedFd::from(ours)), 3, 8);
    let error = connection.greet(limit).err().unwrap().to_string();
    assert!(error.contains("rank 3") && error.contains("does not speak PMI-1"), "{error}");
    flood.join().unwrap();
    // A notice that says that it has more pieces than any has, and one whose pieces have no end.
    let stream = mpiexec(1024);
    let mut rank0 = Connection::new(File::from(OwnedFd::from(stream)), 0, 1).greet(limit).unwrap();
    for (board, count) in [(0, usize::MAX), (1, 4096)] {
        for piece in 0..20 {
            let first = if piece == 0 { format!("{count}.") } else { String::new() };
            let value = format!("{first}{}", "ab".repeat(450));
            let request = format!("cmd=put kvsname=kvs_1_0 key={} value={value}", key(board, piece));
            rank0.request(&request, "put_result", limit).unwrap();
        }
        let error = rank0.read(limit).unwrap_err().to_string();
        assert!(error.contains("came back changed"), "{error}");
    }
}

#[test]
fn a_closed_descriptor_names_the_variable() {
    let lookup = |name: &str| match name {
        "PMI_FD" => Some("987654".to_string()),
        "PMI_RANK" => Some("0".to_string()),
        "PMI_SIZE" => Some("2".to_string()),
        _ => None,
    };
    let error = Connection::open(&lookup, &Limit::after(Duration::ZERO)).err().unwrap().to_string();
    assert!(error.starts_with("PMI_FD=987654: expected the open descriptor"), "{error}");
}

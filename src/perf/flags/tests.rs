use clap::Parser;

use super::*;

#[derive(Parser, Debug)]
#[command(version)]
struct Line {
    operation: Operation,
    #[command(flatten)]
    flags: Flags,
}

/// Read a command line as `maypole perf` does; clap's errors and ours alike.
fn plan(line: &str) -> std::result::Result<Plan, String> {
    let line = Line::try_parse_from(std::iter::once("perf").chain(line.split(' '))).map_err(|e| e.to_string())?;
    Plan::new(line.operation, line.flags).map_err(|e| e.to_string())
}

fn sizes(line: &str) -> Vec<usize> {
    plan(line).unwrap().sizes().collect()
}

#[test]
fn defaults_end_at_16_megabytes() {
    let default = plan("all_reduce").unwrap();
    let sizes: Vec<_> = default.sizes().collect();
    assert_eq!((sizes[0], sizes[1], sizes[sizes.len() - 1]), (8, 16, 16 << 20));
    assert_eq!(default.combinations(), [(DataType::F32, Some(NamedOp::Sum))]);
    assert_eq!((default.flags.iters, default.flags.check, default.flags.average), (None, 1, 1));
}

#[test]
fn sizes_step_as_in_nccl_tests() {
    assert_eq!(sizes("all_reduce -b 8 -e 4K -f 8"), [8, 64, 512, 4096]);
    assert_eq!(sizes("all_reduce --minbytes 1K --maxbytes 4K --stepbytes 1K"), [1024, 2048, 3072, 4096]);
    assert_eq!(sizes("all_reduce -b 1M -e 3M -f 1"), [1 << 20, 2 << 20, 3 << 20]);
    assert_eq!(sizes("all_reduce -b 8 -e 32 -i 8 -f 4"), [8, 32]);
    assert_eq!(sizes("all_reduce -b 100 -e 100"), [100]);
    assert_eq!(sizes("all_reduce -b 0 -e 16 -i 8"), [0, 8, 16]);
    assert_eq!(sizes("all_reduce -b 0 -e 0"), [0]);
    assert_eq!(sizes("barrier -b 8 -e 16M"), [0]);
    let huge = format!("all_reduce -b {} -e {}", usize::MAX / 2, usize::MAX);
    assert_eq!(sizes(&huge), [usize::MAX / 2, usize::MAX - 1]);
}

#[test]
fn every_long_name_of_nccl_tests_is_read() {
    let line = "reduce --minbytes 8 --maxbytes 64 --stepfactor 2 --iters 7 --warmup_iters 3 --agg_iters 2 --check 4 \
                --op mulsum --datatype half --root -1 --run_cycles 5 --average 3 --nthreads 1 --ngpus 1 \
                --json out.json";
    let plan = plan(line).unwrap();
    let f = &plan.flags;
    assert_eq!((f.iters, f.warmup_iters, f.agg_iters, f.check, f.run_cycles, f.average), (Some(7), 3, 2, 4, 5, 3));
    assert_eq!(plan.combinations(), [(DataType::F16, Some(NamedOp::PreMulSum))]);
    assert_eq!(plan.roots(3).unwrap(), [0, 1, 2]);
}

#[test]
fn nccl_tests_flags_are_done_or_ignored_with_a_word() {
    // As scripts that know their defaults pass them.
    let quiet = "all_reduce -p 1 -z 0 -y 0 -x 0 -D 0 -V 0 -T 0 -G 0 -C 0 -S 0 -M 0 -R 0 -u 0 -Y coarse -t 1 -g 1 -a 1";
    let plan_of_defaults = plan(quiet).unwrap();
    assert_eq!(plan_of_defaults.flags.ignored.words().collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(plan_of_defaults.config.timeout, crate::Config::default().timeout);
    for (flag, word) in [("-G 10", "--cudagraph"), ("--blocking 1", "-z 1"), ("-x 2", "MAYPOLE_DEVICE_BLOCKS")] {
        let words: Vec<String> = plan(&format!("all_reduce {flag}")).unwrap().flags.ignored.words().collect();
        assert!(words.len() == 1 && words[0].contains(word) && words[0].contains("ignored"), "{flag}: {words:?}");
    }
    for (flag, registered) in [("", 0), ("-R", 1), ("-R 1", 1), ("--local_register 2", 2), ("-R 0", 0), ("-R -n 3", 1)]
    {
        assert_eq!(plan(format!("all_reduce {flag}").trim()).unwrap().flags.registered, registered, "{flag}");
    }
    let done = plan("all_reduce -T 7 -S 1 --output_file out.json -b 0.5M -e 1.5M -f 3").unwrap();
    assert_eq!((done.config.timeout, done.flags.timestamps), (std::time::Duration::from_secs(7), 1));
    assert!(done.flags.json.is_some());
    assert_eq!(done.sizes().collect::<Vec<_>>(), [1 << 19, 3 << 19]);
}

#[test]
fn all_leaves_out_what_a_type_lacks() {
    let all = plan("all_reduce -d all -o all").unwrap().combinations();
    assert_eq!(all.len(), 6 * 9 + 6 * 6);
    assert!(!all.contains(&(DataType::F32, Some(NamedOp::Xor))));
    assert_eq!(plan("all_reduce -d all -o and").unwrap().combinations().len(), 6);
    assert_eq!(plan("all_gather -d all -o all").unwrap().combinations().len(), 12);
    assert_eq!(plan("barrier -d all").unwrap().combinations().len(), 1);
}

#[test]
fn nonsense_is_refused_with_the_reason() {
    for (line, reason) in [
        ("all_reduce -b 1M -e 8", "larger than --maxbytes"),
        ("all_reduce -f 0", "--stepfactor=0"),
        ("all_reduce -i 0", "at least one byte"),
        ("all_reduce -b 0", "no factor leads from 0"),
        ("all_reduce -b eight", "such as 8, 4K or 64M"),
        ("all_reduce -b -8", "-8"),
        ("all_reduce -b 0.5", "such as 8, 4K or 64M"),
        ("all_reduce -b 1.x5M", "such as 8, 4K or 64M"),
        ("all_reduce -R 3", "3"),
        ("all_reduce -T soon", "MAYPOLE_TIMEOUT=soon"),
        ("all_reduce -n 0", "--iters=0"),
        ("all_reduce -m 0", "--agg_iters=0"),
        ("all_reduce -n many", "many"),
        ("all_reduce -a 4", "4"),
        ("all_reduce -d quad", "no such type"),
        ("all_reduce -o median", "no such operation"),
        ("all_reduce -o xor", "not defined on f32"),
        ("all_reduce -o and -d half", "not defined on f16"),
        ("all_reduce --ranks 0", "at least one rank"),
        ("all_reduce --ranks -2", "-2"),
        ("all_reduce --threads", "--ranks"),
        ("all_reduce -t 2", "--nthreads=2"),
        ("all_reduce -g 2", "--ngpus=2"),
        ("all_reduce --transport pigeon", "auto, shm or tcp"),
        ("all_reduce --algorithm magic", "algorithm"),
        ("all_reduce -J /no/such/directory/out.json", "no directory"),
        ("broadcast --ranks 4 -r 4", "0 to 3"),
        ("broadcast -r first", "expected a rank"),
        ("all_reduces", "no such collective"),
    ] {
        let error = plan(line).expect_err(line);
        assert!(error.contains(reason), "{line}: {error}");
    }
    // What a collective does not look at is not refused.
    assert!(plan("all_gather -o xor").is_ok());
    assert!(plan("all_reduce --ranks 2 -r 7").is_ok());
    assert!(plan("broadcast -r 7").unwrap().roots(4).is_err());
}

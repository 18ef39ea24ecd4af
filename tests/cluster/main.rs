//! Worlds of several hosts, on one machine: every host is a network namespace with a name of its own, linked to a
//! bridge by a cable whose rate is limited, which can be cut and healed ([`net`]), and with somebody in between
//! ([`between`]). Ranks are processes in them
//! ([`job`]).
//!
//! That needs root, `ip` and `tc` (iproute2), and `iperf3` and `tcpdump` for the tests that use them. Where something is
//! missing, each test says `skipped:`, its name and why on standard error; with `MAYPOLE_TEST_CLUSTER=1` that is a
//! failure. Tests of bandwidth and of slow cables run alone; the others wait most of their time, and run beside each other.

mod bandwidth;
mod between;
mod collectives;
mod failures;
mod job;
mod net;
#[path = "../ranks/mod.rs"]
mod ranks;
mod slow;
mod strangers;

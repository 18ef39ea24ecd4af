//! The contract of links, as tests: one suite, run over every transport and over wrapped ones.
//!
//! * `cases`: what every link must do, written against the traits alone.
//! * `factories`: how to make a pair of ends for each transport.
//! * `traffic`: messages of random sizes, written and read in random ways, every byte checked.
//! * `sleeping`, `processes`, `strangers`, `faults`, `sealed`: what only some transports have: a poller, death of a peer
//!   process, bytes from somebody who does not speak the protocol, cuts at a given byte, encryption.

mod cases;
mod factories;
mod faults;
mod processes;
mod sealed;
mod sleeping;
mod strangers;
mod traffic;

use factories::{Dribbling, Sealed, Shm, Tcp};

/// All cases over one factory, as a module of tests.
macro_rules! suite {
    ($name:ident, $factory:expr) => {
        mod $name {
            use super::*;
            suite!(@cases $factory; order, order_between_threads, credit, stops_beyond_credit, empty_messages,
                larger_than_capacity, elements_stay_whole, sender_dropped, sender_dropped_within_a_message, receiver_dropped,
                both_directions_at_once, interrupted_by_signals);
        }
    };
    (@cases $factory:expr; $($case:ident),*) => {
        $(#[test] fn $case() { cases::$case(&$factory); })*
    };
}

suite!(tcp_one_connection, Tcp::v4(1));
suite!(tcp_four_connections, Tcp::v4(4));
suite!(tcp_v6, Tcp::v6(1));
suite!(tcp_v6_three_connections, Tcp::v6(3));
suite!(tcp_encrypted, Sealed(Tcp::v4(1)));
suite!(tcp_encrypted_four_connections, Sealed(Tcp::v4(4)));
suite!(shm_threads, Shm);
suite!(dribbling_tcp, Dribbling(Tcp::v4(1)));
suite!(dribbling_tcp_encrypted, Dribbling(Sealed(Tcp::v4(1))));
suite!(dribbling_tcp_two_connections, Dribbling(Tcp::v4(2)));
suite!(dribbling_shm, Dribbling(Shm));

//! Placements on hosts that are worth verifying.

use crate::hosts::Hosts;
use std::sync::Arc;

/// Ways to place `size` ranks on hosts, each different from the others: all together, all apart, evenly in twos and
/// fours, dealt round three hosts, ever more on each host, half of them together and the others apart, and scattered
/// without any order.
pub fn layouts(size: usize) -> Vec<Arc<Hosts>> {
    let triangle = |rank: usize| (((8 * rank + 1) as f64).sqrt() as usize - 1) / 2;
    let ways: [&dyn Fn(usize) -> usize; 8] = [
        &|_| 0,
        &|rank| rank,
        &|rank| rank / 2,
        &|rank| rank / 4,
        &|rank| rank % 3,
        &triangle,
        &|rank| rank.saturating_sub(size / 2),
        &|rank| (rank * rank + rank / 3) % 5,
    ];
    let mut layouts: Vec<Arc<Hosts>> = Vec::new();
    for way in ways {
        let hosts = Hosts::new((0..size).map(way));
        if !layouts.iter().any(|known| **known == hosts) {
            layouts.push(Arc::new(hosts));
        }
    }
    layouts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_what_they_are_called() {
        let names: Vec<String> = layouts(6).iter().map(|hosts| hosts.to_string()).collect();
        let expected = [
            "6 ranks on one host",
            "6 ranks on as many hosts",
            "2 ranks on each of 3 hosts",
            "0 1 2 3 | 4 5",
            "0 3 | 1 4 | 2 5",
            "0 | 1 2 | 3 4 5",
            "0 1 2 3 | 4 | 5",
            "0 3 | 1 5 | 2 | 4",
        ];
        assert_eq!(names, expected);
        assert_eq!(layouts(1).len(), 1);
    }
}

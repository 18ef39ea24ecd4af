//! Which algorithm and slice an operation gets.

use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;

/// Read `MAYPOLE_ALGORITHM`: comma-separated `algorithm` or `collective=algorithm`.
pub fn parse_overrides(text: &str) -> Result<Vec<(Option<Collective>, Algorithm)>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            let (collective, algorithm) = match entry.split_once('=') {
                None => (None, entry),
                Some((c, a)) => {
                    let found = Collective::ALL.into_iter().find(|x| x.name() == c);
                    (Some(found.ok_or_else(|| format!("no collective is called {c}"))?), a)
                }
            };
            let algorithm: Algorithm = algorithm.parse().map_err(|e| format!("{e}"))?;
            Ok((collective, algorithm))
        })
        .collect()
}

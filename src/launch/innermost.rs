//! Which of several launchers has started this process last.
//!
//! Launchers nest, and leave their variables to everything that is started under them: a pod of Kubernetes with `RANK`
//! and `WORLD_SIZE` in which somebody calls `mpirun`, torchrun under `srun`, a script under `mpirun` that starts ranks
//! by hand. Only the innermost one knows who the process is. The variables do not say which that is, but the
//! environments of the ancestors do: those of the nearest ones have what the outer launchers have set, and lack what the
//! innermost has.

use std::collections::HashMap;

use super::Lookup;

/// As far as anybody looks up.
const FARTHEST: usize = 64;

/// The environments with which the ancestors were started, the parent's first, as far as this process may read them.
pub(super) struct Ancestors(Vec<HashMap<String, String>>);

impl Ancestors {
    /// Those of this process.
    pub(super) fn read() -> Ancestors {
        let mut environments = Vec::new();
        let mut process = nix::unistd::getppid().as_raw();
        while process > 0 && environments.len() < FARTHEST {
            // Another user's process, or one in another namespace: it and those before it say nothing.
            let Ok(bytes) = std::fs::read(format!("/proc/{process}/environ")) else { break };
            let text = String::from_utf8_lossy(&bytes);
            let variables = text.split('\0').filter_map(|variable| variable.split_once('='));
            environments.push(variables.map(|(name, value)| (name.to_string(), value.to_string())).collect());
            let Some(parent) = parent(process) else { break };
            process = parent;
        }
        Ancestors(environments)
    }

    #[cfg(test)]
    pub(super) fn of(environments: Vec<HashMap<String, String>>) -> Ancestors {
        Ancestors(environments)
    }

    /// How many ancestors, from the parent on, have all of these variables with this process's values: 0 if they were
    /// set for this process itself.
    pub(super) fn since(&self, lookup: Lookup, names: &[&str]) -> usize {
        let here: Vec<(&str, String)> = names.iter().filter_map(|name| Some((*name, lookup(name)?))).collect();
        let has = |environment: &&HashMap<String, String>| {
            here.iter().all(|(name, value)| environment.get(*name) == Some(value))
        };
        self.0.iter().take_while(has).count()
    }
}

/// The parent of a process, from its `stat` (whose second field, a name in parentheses, may hold anything).
fn parent(process: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_last_is_in_the_fewest_ancestors() {
        let environment = |text: &str| -> HashMap<String, String> {
            text.split_whitespace().filter_map(|v| v.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
        };
        // A program under a shell under mpirun in a pod.
        let ancestors = Ancestors::of(vec![
            environment("RANK=0 WORLD_SIZE=1 PMIX_RANK=2"),
            environment("RANK=0 WORLD_SIZE=1"),
            environment("RANK=0 WORLD_SIZE=1"),
            environment(""),
        ]);
        let here = environment("RANK=0 WORLD_SIZE=1 PMIX_RANK=2");
        let lookup = |name: &str| here.get(name).cloned();
        assert_eq!(ancestors.since(&lookup, &["RANK", "WORLD_SIZE"]), 3);
        assert_eq!(ancestors.since(&lookup, &["PMIX_RANK"]), 1);
        // The same number for another reason.
        let here = environment("RANK=0 WORLD_SIZE=4 PMIX_RANK=2");
        assert_eq!(ancestors.since(&|name| here.get(name).cloned(), &["RANK", "WORLD_SIZE"]), 0);
    }

    #[test]
    fn ancestors_are_found() {
        let ancestors = Ancestors::read();
        assert!(!ancestors.0.is_empty(), "the parent runs as the same user");
        assert_eq!(parent(std::process::id() as i32), Some(nix::unistd::getppid().as_raw()));
    }
}

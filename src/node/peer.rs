//! What ranks know of each other: [`Peer`], and how a process describes itself.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::config::{Config, Family};
use crate::descriptors;

/// The longest settings text that is passed on; the digest covers all of it.
const SETTINGS_TEXT: usize = 1024;

/// One rank of the job, as every rank sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its rank in the world.
    pub rank: usize,
    /// Its host's name, for people.
    pub host: String,
    /// Equal for two ranks exactly if they may share memory: same boot of the same machine, same namespaces (processes,
    /// IPC, network, users), same user, same `MAYPOLE_HOST`.
    pub host_id: u64,
    /// Its process, in its own process namespace.
    pub pid: u32,
    /// Where its data listener can be reached, best first.
    pub data: Vec<SocketAddr>,
    /// Name of its abstract unix socket, for ranks with the same `host_id`.
    pub local: String,
    /// How many cores it can use: affinity and the container's share considered.
    pub cores: usize,
    /// Which cores its affinity allows, 64 a word, lowest first; empty if unknown. Ranks bound to one core each have
    /// disjoint sets.
    #[serde(with = "super::affinity")]
    pub affinity: Vec<u64>,
}

/// The settings that shape messages: all ranks must have the same. A rank says them as it comes, and never again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Equal exactly if the settings are.
    pub digest: u64,
    /// The settings as text.
    pub text: String,
}

impl Settings {
    /// Those of `config`.
    pub fn of(config: &Config) -> Settings {
        let mut text = format!(
            "MAYPOLE_ALGORITHM={} MAYPOLE_TRANSPORT={:?} MAYPOLE_SLICE={} MAYPOLE_RING={} \
             MAYPOLE_WINDOW={} MAYPOLE_CONNECTIONS={} MAYPOLE_ENCRYPT={} MAYPOLE_DEVICE_WINDOW={} MAYPOLE_DEVICE_FIFO={} \
             MAYPOLE_DEVICE_STAGING={:?}",
            config.algorithm,
            config.transport,
            config.slice,
            config.ring,
            config.window,
            config.connections,
            u8::from(config.encrypt),
            config.device_window,
            config.device_fifo,
            config.device_staging
        );
        let digest = digest(text.as_bytes());
        if text.len() > SETTINGS_TEXT {
            text.truncate((0..=SETTINGS_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        }
        Settings { digest, text }
    }
}

/// 64 bits of BLAKE3.
fn digest(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*blake3::hash(bytes).as_bytes().first_chunk().expect("32 bytes"))
}

/// This machine's name for people.
pub(super) fn host_name() -> String {
    let name = nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut name = if name.is_empty() { "localhost".to_string() } else { name };
    name.truncate((0..=255.min(name.len())).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0));
    name
}

/// What identifies this boot of this machine and the namespaces `names`. Parts that cannot be read count as empty.
///
/// # Errors
/// There is no file descriptor to read with: another time it would be another machine.
fn machine(names: &[&str]) -> io::Result<String> {
    let mut text = match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Err(e) if descriptors::ran_out(&e) => return Err(e),
        read => read.unwrap_or_else(|_| host_name()),
    };
    for name in names {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}"));
        text += &format!("\n{name}={}", link.map(|l| l.to_string_lossy().into_owned()).unwrap_or_default());
    }
    Ok(text)
}

/// See [`Peer::host_id`].
pub(super) fn host_id(config: &Config) -> io::Result<u64> {
    let uid = nix::unistd::geteuid();
    let named = config.host.as_deref().unwrap_or_default();
    let machine = machine(&["pid", "ipc", "net", "user"])?;
    Ok(digest(format!("{machine}\nuid={uid}\nhost={named}").as_bytes()))
}

/// Equal exactly for callers in one process, whatever their settings: process numbers start anew in each namespace.
pub(super) fn process_id() -> io::Result<u64> {
    Ok(digest(format!("{}\npid={}", machine(&["pid"])?, std::process::id()).as_bytes()))
}

/// Whether `address` is of the family that was asked for.
pub(super) fn allowed(family: Family, address: &IpAddr) -> bool {
    match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_its_settings_say() {
        let mut config = Config::default();
        let here = host_id(&config).unwrap();
        assert_eq!(here, host_id(&config).unwrap());
        config.host = Some("elsewhere".into());
        assert_ne!(here, host_id(&config).unwrap());
        assert_eq!(process_id().unwrap(), process_id().unwrap());
    }

    #[test]
    fn settings_differ_when_they_differ() {
        let mut config = Config::default();
        let one = Settings::of(&config);
        config.ring *= 2;
        assert_ne!(one.digest, Settings::of(&config).digest);
        config.algorithm = "é".repeat(2000);
        let long = Settings::of(&config);
        assert!(long.text.len() <= SETTINGS_TEXT);
        config.algorithm += "x";
        assert_ne!(long.digest, Settings::of(&config).digest);
    }
}

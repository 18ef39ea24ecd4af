//! Which of this machine's network interfaces TCP uses: `MAYPOLE_INTERFACE` and `MAYPOLE_FAMILY`.
//!
//! | `MAYPOLE_INTERFACE` | means |
//! | --- | --- |
//! | `eth` | interfaces whose names begin so: eth0, eth1; an `eth` itself first |
//! | `eth0,ib` | the same of several; what an earlier entry means is preferred |
//! | `=eth0,ib0` | exactly these |
//! | `^lo,docker` | all but those whose names begin so; `^=docker0`: all but exactly these |
//! | `10.1.2.3`, `10.1.0.0/16`, `fd00::/8` | in place of a name: addresses like that, whatever the interface |
//!
//! Names are as NCCL's `NCCL_SOCKET_IFNAME` has them, so that a cluster's one setting fits both.

use std::io;
use std::net::IpAddr;

use super::peer;
use crate::config::{Config, Family};
use crate::error::{Error, Result};

/// The most addresses that a rank publishes.
const ADDRESSES: usize = 8;

/// What `MAYPOLE_INTERFACE` says.
pub(crate) struct Choice {
    /// The entries are what is not wanted.
    exclude: bool,
    entries: Vec<Entry>,
}

enum Entry {
    Exact(String),
    Prefix(String),
    /// An address, and how many of its first bits count.
    Network(IpAddr, u32),
}

impl Choice {
    /// Read the setting's text.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> std::result::Result<Choice, &'static str> {
        let (exclude, rest) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let (exact, rest) = rest.strip_prefix('=').map_or((false, rest), |rest| (true, rest));
        let entries = rest.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(|entry| {
            let (address, bits) = entry.split_once('/').map_or((entry, None), |(address, bits)| (address, Some(bits)));
            if let Ok(ip) = address.parse::<IpAddr>() {
                let all = if ip.is_ipv4() { 32 } else { 128 };
                let bits = bits.map_or(Ok(all), str::parse).ok().filter(|bits| *bits <= all);
                return bits.map(|bits| Entry::Network(ip, bits)).ok_or("expected a network such as 10.1.0.0/16");
            }
            if entry.contains(['^', '=', '/']) || entry.contains(char::is_whitespace) {
                return Err(
                    "expected names or addresses, such as eth0,ib or 10.1.0.0/16; ^ (all but) and = (exactly) \
                            stand once, before the first",
                );
            }
            Ok(if exact { Entry::Exact(entry.into()) } else { Entry::Prefix(entry.into()) })
        });
        let entries: Vec<Entry> = entries.collect::<std::result::Result<_, _>>()?;
        if entries.is_empty() {
            return Err("expected names of network interfaces, or beginnings of names: eth0,ib, =eth0, ^lo,docker");
        }
        Ok(Choice { exclude, entries })
    }

    /// How much address `ip` of interface `name` is preferred, the least most; `None` if it is not wanted.
    fn place(&self, name: &str, ip: IpAddr) -> Option<(usize, bool)> {
        let fits = |entry: &Entry| match entry {
            Entry::Exact(exact) => exact == name,
            Entry::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Entry::Network(network, bits) => within(ip, *network, *bits),
        };
        let is_name = |entry: &Entry| matches!(entry, Entry::Prefix(prefix) if prefix == name);
        let found = self.entries.iter().position(fits);
        match self.exclude {
            true => found.is_none().then_some((0, false)),
            false => found.map(|at| (at, !is_name(&self.entries[at]))),
        }
    }
}

/// Whether the first `bits` bits of two addresses are the same.
fn within(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0,
        _ => false,
    }
}

/// Every usable address of this machine with its interface's name: IPv4 first, loopback last. Link-local IPv6 addresses
/// are left out: they mean nothing without the interface's number, which differs between hosts.
fn all() -> io::Result<Vec<(String, IpAddr)>> {
    use nix::net::if_::InterfaceFlags;
    let mut found: Vec<(String, IpAddr)> = nix::ifaddrs::getifaddrs()?
        .filter(|i| i.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|i| {
            let address = i.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            Some((i.interface_name, ip))
        })
        .collect();
    found.sort_by_key(|(_, ip)| (ip.is_loopback(), ip.is_ipv6()));
    Ok(found)
}

/// The addresses among `all` that `config` allows, the preferred first.
fn chosen(all: &[(String, IpAddr)], choice: Option<&Choice>, family: Family) -> Vec<IpAddr> {
    let mut found: Vec<((usize, bool), IpAddr)> = all
        .iter()
        .filter(|(_, ip)| peer::allowed(family, ip))
        .filter_map(|(name, ip)| Some((choice.map_or(Some((0, false)), |choice| choice.place(name, *ip))?, *ip)))
        .collect();
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, ip)| ip).take(ADDRESSES).collect()
}

/// The setting, parsed; `None` if it is not set.
fn choice(config: &Config) -> Result<Option<Choice>> {
    let Some(text) = &config.interface else { return Ok(None) };
    let refused = |expected: &str| Error::Setting {
        name: "MAYPOLE_INTERFACE".to_string(),
        value: text.clone(),
        expected: expected.to_string(),
    };
    Choice::parse(text).map(Some).map_err(refused)
}

/// The addresses that `MAYPOLE_INTERFACE` and `MAYPOLE_FAMILY` allow, the preferred first: all of the machine's if no
/// interface is asked for.
///
/// # Errors
/// [`Error::Setting`] if there is none, naming the interfaces there are; [`Error::System`] if they cannot be listed.
pub(super) fn addresses(config: &Config) -> Result<Vec<IpAddr>> {
    let all = all().map_err(|e| Error::system("cannot list the network interfaces of this host", e))?;
    let found = chosen(&all, choice(config)?.as_ref(), config.family);
    if !found.is_empty() {
        return Ok(found);
    }
    let family = match config.family {
        Family::Any => "",
        Family::V4 => " with an IPv4 address",
        Family::V6 => " with an IPv6 address",
    };
    let list: Vec<String> = all.iter().map(|(name, ip)| format!("{name} ({ip})")).collect();
    let (name, value) = match &config.interface {
        Some(wanted) => ("MAYPOLE_INTERFACE", wanted.clone()),
        None => ("MAYPOLE_FAMILY", if config.family == Family::V6 { "6" } else { "4" }.to_string()),
    };
    Err(Error::Setting {
        name: name.to_string(),
        value,
        expected: format!(
            "no such network interface or address{family} on host {}; there are {}",
            peer::host_name(),
            if list.is_empty() { "none at all".to_string() } else { list.join(", ") }
        ),
    })
}

/// The one address at which to listen, among `allowed` of [`addresses`], if the setting says where: the preferred one,
/// or where it only excludes some, that of the `route` to the others if it may be used. `None`: all addresses.
pub(super) fn bound(config: &Config, allowed: &[IpAddr], route: Option<IpAddr>) -> Result<Option<IpAddr>> {
    let Some(choice) = choice(config)? else { return Ok(None) };
    let route = route.filter(|route| choice.exclude && allowed.contains(route));
    Ok(route.or(allowed.first().copied()))
}

/// The local address from which to call others, if the setting names some: what it only excludes leaves the choice to
/// the routes.
pub(super) fn source(config: &Config) -> Option<IpAddr> {
    let choice = choice(config).ok()??;
    if choice.exclude { None } else { addresses(config).ok()?.first().copied() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Vec<(String, IpAddr)> {
        let list = [
            ("eth0", "10.1.0.5"),
            ("eth1", "10.2.0.5"),
            ("eth10", "10.3.0.5"),
            ("ib0", "192.168.7.5"),
            ("docker0", "172.17.0.1"),
            ("eth0", "2001:db8::5"),
            ("ib0", "fd00::5"),
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
        ];
        list.map(|(name, ip)| (name.to_string(), ip.parse().unwrap())).to_vec()
    }

    fn pick(text: &str, family: Family) -> Vec<String> {
        let choice = Choice::parse(text).unwrap();
        chosen(&machine(), Some(&choice), family).iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn names_prefixes_lists_exclusions_and_networks() {
        for (text, expected) in [
            ("eth0", &["10.1.0.5"][..]),
            ("eth", &["10.1.0.5", "10.2.0.5", "10.3.0.5"]),
            // The interface of that very name before others that begin so.
            ("eth1", &["10.2.0.5", "10.3.0.5"]),
            ("=eth1", &["10.2.0.5"]),
            ("ib,eth0", &["192.168.7.5", "10.1.0.5"]),
            ("eth0, ib", &["10.1.0.5", "192.168.7.5"]),
            ("=ib0,docker0", &["192.168.7.5", "172.17.0.1"]),
            ("=ib", &[]),
            ("^lo,docker", &["10.1.0.5", "10.2.0.5", "10.3.0.5", "192.168.7.5"]),
            ("^eth,ib0,docker0", &["127.0.0.1"]),
            ("^=eth1,lo", &["10.1.0.5", "10.3.0.5", "192.168.7.5", "172.17.0.1"]),
            ("10.2.0.5", &["10.2.0.5"]),
            ("10.0.0.0/8", &["10.1.0.5", "10.2.0.5", "10.3.0.5"]),
            ("0.0.0.0/0", &["10.1.0.5", "10.2.0.5", "10.3.0.5", "192.168.7.5", "172.17.0.1", "127.0.0.1"]),
            ("10.2.0.0/15,ib", &["10.2.0.5", "10.3.0.5", "192.168.7.5"]),
            ("^10.0.0.0/8,lo,172.17.0.1", &["192.168.7.5"]),
            ("nosuch", &[]),
        ] {
            assert_eq!(pick(text, Family::V4), expected, "{text}");
        }
        assert_eq!(pick("ib", Family::Any), ["192.168.7.5", "fd00::5"]);
        assert_eq!(pick("fd00::/8,eth0", Family::V6), ["fd00::5", "2001:db8::5"]);
        for text in ["", "^", "=", ",", "eth0,^ib", "eth0,=ib", "10.0.0.0/33", "::1/129", "10.0.0.0/x", "eth/0", "a b"]
        {
            assert!(Choice::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn an_unknown_interface_is_an_error_that_lists_those_there_are() {
        let config = Config { interface: Some("nosuch0".into()), ..Config::default() };
        let error = addresses(&config).unwrap_err().to_string();
        assert!(error.contains("nosuch0") && error.contains("127.0.0.1"), "{error}");
        let config = Config { interface: Some("127.0.0.1".into()), ..Config::default() };
        assert_eq!(addresses(&config).unwrap(), [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(source(&config), Some(IpAddr::from([127, 0, 0, 1])));
        let config = Config { interface: Some("^nosuch".into()), ..Config::default() };
        assert_eq!(source(&config), None, "the routes choose");
        let config = Config { interface: Some("eth0,^lo".into()), ..Config::default() };
        let error = addresses(&config).unwrap_err().to_string();
        assert!(error.contains("MAYPOLE_INTERFACE=eth0,^lo") && error.contains("before the first"), "{error}");
    }
}

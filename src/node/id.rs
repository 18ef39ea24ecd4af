//! Names a job and says where it meets: [`UniqueId`] and [`Meeting`].

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::auth;
use super::key::Key;
use super::{hub, interfaces, ports};
use crate::config::Config;
use crate::error::{Error, Result};

/// Opens the 128 bytes; the last byte is their version.
const MAGIC: [u8; 8] = *b"maypole\x01";
/// Bytes of one address: family, 16 of address, 2 of port.
const ADDRESS: usize = 19;
/// The most addresses an id has room for.
const ADDRESSES: usize = 4;
/// Where the addresses begin: after the magic, the key and their number.
const FIRST: usize = 8 + 32 + 1;
/// How long somebody may take to answer when it is only asked whether there is anybody.
const ANYBODY_WITHIN: Duration = Duration::from_secs(1);
/// Where the checksum begins.
const CHECKSUM: usize = 124;

/// Names a world that is about to meet: hand the same one to every rank. 128 bytes, safe to pass through any key-value
/// store or file.
///
/// It holds random bytes from which the job's key is derived, together with `MAYPOLE_KEY` where that is set: without it,
/// whoever reads the id can join the job. And it holds the addresses of the process that created
/// it. That process must live, and can be reached by every rank, until the job is over: it holds the job together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(
    /// The bytes; [`UniqueId::from_bytes`] checks them.
    pub [u8; 128],
);

impl std::fmt::Debug for UniqueId {
    /// The addresses only: the key stays secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("UniqueId").field(&self.addresses()).finish()
    }
}

impl UniqueId {
    /// Make an id and the meeting point behind it: a listener and a thread in this process, which end when the job is
    /// over, or when nobody has come for ten times `MAYPOLE_CONNECT_TIMEOUT`. Any process may do it; usually rank 0
    /// does and hands the id to the others.
    ///
    /// # Errors
    /// [`Error::Setting`] if `MAYPOLE_INTERFACE` or `MAYPOLE_FAMILY` leave no address, or a setting makes no sense;
    /// [`Error::System`] if no port can be bound.
    pub fn create(config: &Config) -> Result<UniqueId> {
        config.check()?;
        let ips = interfaces::addresses(config)?;
        let bound = interfaces::bound(config, &ips, None)?;
        UniqueId::listen(ips, bound, config)
    }

    /// [`UniqueId::create`] for ranks that are all on this host: they meet on its loopback interface, where nobody else
    /// comes, whatever `MAYPOLE_INTERFACE` says of their data.
    ///
    /// # Errors
    /// As [`UniqueId::create`].
    pub(crate) fn local(config: &Config) -> Result<UniqueId> {
        config.check()?;
        let at = |ip: IpAddr| UniqueId::listen(vec![ip], Some(ip), config);
        // A machine may have no IPv4 at all.
        at(Ipv4Addr::LOCALHOST.into()).or_else(|v4| at(Ipv6Addr::LOCALHOST.into()).map_err(|_| v4))
    }

    /// Make an id with the meeting point behind it, which listens at `bound`, or at all addresses of the family.
    fn listen(ips: Vec<IpAddr>, bound: Option<IpAddr>, config: &Config) -> Result<UniqueId> {
        let random = auth::random().map_err(|e| Error::system("cannot make a key for the job", e))?;
        let key = Key::of_world(&random, 0, config);
        let listener = ports::listen(bound, config.family, config.ports.as_ref())
            .map_err(|e| Error::system("cannot open a port for the ranks to meet at", e))?;
        let at = listener.local_addr().map_err(|e| Error::system("cannot tell the meeting point's port", e))?;
        let bound_one = !at.ip().is_unspecified();
        let addresses: Vec<SocketAddr> = ips
            .into_iter()
            .filter(|ip| !bound_one || *ip == at.ip())
            .filter(|ip| at.is_ipv6() || ip.is_ipv4())
            .map(|ip| SocketAddr::new(ip, at.port()))
            .take(ADDRESSES)
            .collect();
        hub::start(listener, key, config, None)?;
        Ok(UniqueId::encode(&random, &addresses))
    }

    pub(super) fn encode(random: &[u8; 32], addresses: &[SocketAddr]) -> UniqueId {
        let mut bytes = [0; 128];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..40].copy_from_slice(random);
        bytes[40] = addresses.len() as u8;
        for (place, address) in bytes[FIRST..].chunks_exact_mut(ADDRESS).zip(addresses) {
            match address.ip() {
                IpAddr::V4(v4) => {
                    place[0] = 4;
                    place[1..5].copy_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    place[0] = 6;
                    place[1..17].copy_from_slice(&v6.octets());
                }
            }
            place[17..].copy_from_slice(&address.port().to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes[CHECKSUM..].copy_from_slice(&sum);
        UniqueId(bytes)
    }

    /// Give bytes that are no id the beginning and the checksum of one.
    #[cfg(any(test, fuzzing))]
    pub(super) fn mend(bytes: &mut [u8; 128]) {
        bytes[..8].copy_from_slice(&MAGIC);
        let sum = checksum(bytes);
        bytes[CHECKSUM..].copy_from_slice(&sum);
    }

    /// Nobody shall meet there any more: the meeting point, if it is in this process and the ranks have not met, refuses
    /// whoever comes from now on.
    pub(crate) fn withdraw(&self) {
        if let Some(at) = self.addresses().first() {
            hub::withdraw(at.port());
        }
    }

    /// Whether nobody listens at any of the addresses: the process that made it has ended, or the meeting is over. Blocks
    /// for at most a second for each address.
    pub(crate) fn is_deserted(&self) -> bool {
        let refuses = |at: &SocketAddr| {
            let answer = TcpStream::connect_timeout(at, ANYBODY_WITHIN);
            answer.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        };
        self.addresses().iter().all(refuses)
    }

    /// The bytes to hand to the other ranks.
    pub fn as_bytes(&self) -> &[u8; 128] {
        &self.0
    }

    /// An id from bytes that another rank handed over.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] if these bytes are no id: another length, cut or changed on the way, or another version's.
    pub fn from_bytes(bytes: &[u8]) -> Result<UniqueId> {
        let bad = |what: &str| {
            Error::bootstrap(format!(
                "these {} bytes are no unique id: {what}; hand over all that `UniqueId::as_bytes` gave",
                bytes.len()
            ))
        };
        let array: [u8; 128] = bytes.try_into().map_err(|_| bad("an id has 128"))?;
        if array[..7] != MAGIC[..7] {
            return Err(bad("they do not begin like one"));
        }
        if array[7] != MAGIC[7] {
            return Err(bad("another version of Maypole made them"));
        }
        if array[CHECKSUM..] != checksum(&array) {
            return Err(bad("they were changed on the way"));
        }
        let id = UniqueId(array);
        if id.addresses().is_empty() {
            return Err(bad("they hold no address"));
        }
        Ok(id)
    }

    /// What the job's key is derived from, together with `MAYPOLE_KEY`.
    pub(super) fn random(&self) -> &[u8; 32] {
        self.0[8..].first_chunk().expect("128 bytes")
    }

    /// Where the job meets, best first.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let count = usize::from(self.0[40]).min(ADDRESSES);
        self.0[FIRST..CHECKSUM]
            .chunks_exact(ADDRESS)
            .take(count)
            .filter_map(|place| {
                let ip: IpAddr = match place[0] {
                    4 => <[u8; 4]>::try_from(&place[1..5]).ok()?.into(),
                    6 => <[u8; 16]>::try_from(&place[1..17]).ok()?.into(),
                    _ => return None,
                };
                Some(SocketAddr::new(ip, u16::from_be_bytes([place[17], place[18]])))
            })
            .collect()
    }
}

fn checksum(bytes: &[u8; 128]) -> [u8; 4] {
    *blake3::hash(&bytes[..CHECKSUM]).as_bytes().first_chunk().expect("32 bytes")
}

/// Where and how the ranks of a job meet.
pub enum Meeting {
    /// At the process that created this id.
    Id(UniqueId),
    /// At an address that every rank was told: rank 0 listens there, the others connect, and try again until it does.
    Address {
        /// Name or address of rank 0's host.
        host: String,
        /// The port.
        port: u16,
        /// What the job's key is derived from, together with `MAYPOLE_KEY`: the same on all ranks.
        key: [u8; 32],
        /// How many worlds of this job have met there before. All ranks say the same number. A later world waits until
        /// the one before has ended, and its ranks do not take that one's meeting for theirs.
        earlier: usize,
    },
}

/// Without the key.
impl std::fmt::Debug for Meeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Meeting::Id(id) => f.debug_tuple("Id").field(id).finish(),
            Meeting::Address { host, port, earlier, .. } => write!(f, "Address({host}:{port}, earlier {earlier})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_way_and_changes_are_noticed() {
        let addresses: Vec<SocketAddr> =
            ["10.1.2.3:45678", "[2001:db8::1]:1", "[::1]:65535", "127.0.0.1:9"].map(|a| a.parse().unwrap()).to_vec();
        let id = UniqueId::encode(&[7; 32], &addresses);
        let back = UniqueId::from_bytes(id.as_bytes()).unwrap();
        assert_eq!(back, id);
        assert_eq!(back.random(), &[7; 32]);
        assert_eq!(back.addresses(), addresses);
        assert!(!format!("{id:?}").contains("7, 7"), "the key is not shown");
        for at in 0..128 {
            let mut changed = *id.as_bytes();
            changed[at] ^= 1;
            UniqueId::from_bytes(&changed).unwrap_err();
        }
        UniqueId::from_bytes(&id.as_bytes()[..127]).unwrap_err();
        UniqueId::from_bytes(&[]).unwrap_err();
    }
}

//! `--nic` and `--tap`.

use hearth_vmm_api::MAX_PAIRS;

use super::identity::hash;
use super::options::Options;
use super::{check_device_id, limits, parse_queues};
use crate::virtio::limit::Limits;
use crate::virtio::net::NO_LIMITS;

/// `IFNAMSIZ` without the final zero.
const MAX_TAP_NAME: usize = 15;
/// The smallest MTU that IPv4 allows (RFC 791), and the largest there is.
const MTU: std::ops::RangeInclusive<u16> = 68..=65535;
const DEFAULT_MTU: u16 = 1500;

/// A network interface asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its name on the control socket.
    pub id: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u16,
    /// The tap behind it.
    pub tap: Tap,
    /// Pairs of queues, each on a thread of its own: 1 to 16.
    pub queues: u16,
    /// Whether the kernel moves the packets (vhost-net); none: where it can, and there
    /// are no limits.
    pub vhost: Option<bool>,
    /// How much may pass in each direction.
    pub limits: Limits,
}

/// Which tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tap {
    /// One to open by its name.
    Name(String),
    /// One that this process inherited open, once for each pair of queues.
    Fds(Vec<i32>),
}

impl Tap {
    /// Whether both are, or may be, one and the same.
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(one), Self::Name(other)) => one == other,
            (Self::Fds(some), Self::Fds(others)) => some.iter().any(|fd| others.contains(fd)),
            _ => false,
        }
    }
}

/// Reads the flag's text; `index` is the interface's place in `machine`.
pub(super) fn parse(text: &str, index: usize, machine: &str) -> Result<Nic, String> {
    let mut options = Options::new("--nic", text)?;
    let id = options.value("id")?;
    let mac = options.value("mac")?;
    let mtu = match options.value("mtu")? {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| format!("--nic: mtu {text:?} is no number of bytes"))?,
        ),
    };
    let tap = match (options.value("tap")?, options.value("tap-fd")?) {
        (Some(name), None) => Tap::Name(name.to_owned()),
        (None, Some(fds)) => Tap::Fds(
            fds.split(':')
                .map(|fd| fd.parse().ok().filter(|fd| *fd > 2))
                .collect::<Option<_>>()
                .ok_or(format!("--nic: tap-fd {fds:?} is no inherited descriptor"))?,
        ),
        (Some(_), Some(_)) => return Err("--nic: tap and tap-fd exclude each other".to_owned()),
        (None, None) => return Err("--nic: tap=NAME or tap-fd=N is missing".to_owned()),
    };
    let queues = parse_queues(&mut options)?;
    let vhost = match options.value("vhost")? {
        None => None,
        Some("on") => Some(true),
        Some("off") => Some(false),
        Some(other) => return Err(format!("--nic: vhost {other:?} is neither on nor off")),
    };
    let limits = limits::take(&mut options)?;
    options.finish()?;
    let id = id.map_or_else(|| format!("eth{index}"), str::to_owned);
    Nic::new(machine, id, tap, mac, mtu, queues, vhost)
        .and_then(|nic| nic.limited(limits))
        .map_err(|mistake| format!("--nic: {mistake}"))
}

impl Nic {
    /// A network interface of `machine`, each value checked.
    ///
    /// # Errors
    /// One line that says what was wrong.
    pub fn new(
        machine: &str,
        id: String,
        tap: Tap,
        mac: Option<&str>,
        mtu: Option<u16>,
        queues: Option<u16>,
        vhost: Option<bool>,
    ) -> Result<Self, String> {
        check_device_id(&id)?;
        if let Tap::Fds(fds) = &tap
            && let Some(twice) = fds
                .iter()
                .enumerate()
                .find_map(|(index, fd)| fds[..index].contains(fd).then_some(fd))
        {
            return Err(format!("tap-fd {twice} is given twice"));
        }
        let queues = match (&tap, queues) {
            (Tap::Name(_), queues) => usize::from(queues.unwrap_or(1)),
            (Tap::Fds(fds), Some(queues)) if fds.len() != usize::from(queues) => {
                return Err(format!(
                    "{queues} queues need as many descriptors in tap-fd"
                ));
            }
            (Tap::Fds(fds), _) => fds.len(),
        };
        let queues = u16::try_from(queues)
            .ok()
            .filter(|queues| (1..=MAX_PAIRS).contains(&usize::from(*queues)))
            .ok_or(format!("queues {queues}: 1 to {MAX_PAIRS} are allowed"))?;
        if let Tap::Name(name) = &tap
            && (name.is_empty()
                || name.len() > MAX_TAP_NAME
                || !name
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'/'))
        {
            return Err(format!("tap {name:?} is no interface name"));
        }
        let mtu = mtu.unwrap_or(DEFAULT_MTU);
        if !MTU.contains(&mtu) {
            return Err(format!(
                "mtu {mtu}: {} to {} are allowed",
                MTU.start(),
                MTU.end()
            ));
        }
        let mac = match mac {
            Some(text) => parse_mac(text)?,
            None => derived_mac(machine, &id),
        };
        Ok(Self {
            id,
            mac,
            mtu,
            tap,
            queues,
            vhost,
            limits: Limits::NONE,
        })
    }

    /// The same with limits.
    ///
    /// # Errors
    /// One line that says why it can't have any.
    pub fn limited(self, limits: Limits) -> Result<Self, String> {
        match self.vhost {
            Some(true) if limits != Limits::NONE => Err(NO_LIMITS.to_owned()),
            _ => Ok(Self { limits, ..self }),
        }
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("mac {text:?} is no unicast MAC address like 02:00:00:00:00:01");
    let mut mac = [0; 6];
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() != mac.len() {
        return Err(wrong());
    }
    for (byte, part) in mac.iter_mut().zip(parts) {
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(wrong());
    }
    Ok(mac)
}

/// A locally administered address out of the names.
fn derived_mac(machine: &str, nic: &str) -> [u8; 6] {
    let [a, b, c, d, e, ..] = hash(&[machine, nic]).to_be_bytes();
    [0x02, a, b, c, d, e]
}

//! Session tickets (RFC 5077, RFC 8446 §4.6.1) under keys that all cores share, so that a session goes
//! on at whichever core, worker or generation its client comes to.
//!
//! Who makes the keys decides how long they live; here they are only used. A ticket belongs to a site:
//! at another one it is worth nothing.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// How long a key makes tickets. The one before it goes on reading them for as long, so a ticket is good
/// for this time at least, and for twice this time at most.
pub const PERIOD: Duration = Duration::from_secs(12 * 3600);

/// Most keys at a time: the one that makes tickets, and those that read them.
pub const KEYS_MAX: usize = 4;

const NAME_LEN: usize = 16;
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;

/// Longest ticket that is looked at: a session with a chain of client certificates.
const TICKET_MAX: usize = 16 << 10;

/// A key, as it goes from process to process. Never written to a disk.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct TicketKey {
    name: [u8; NAME_LEN],
    key: [u8; KEY_LEN],
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

impl TicketKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut this = Self {
            name: [0; NAME_LEN],
            key: [0; KEY_LEN],
        };
        aws_lc_rs::rand::fill(&mut this.name).map_err(|_| NoRandomness)?;
        aws_lc_rs::rand::fill(&mut this.key).map_err(|_| NoRandomness)?;
        Ok(this)
    }
}

/// Makes keys, and renews them: what a server has one of, whatever its processes.
#[derive(Debug)]
pub struct KeyMaker {
    /// The newest first.
    keys: Vec<TicketKey>,
    renew_at: Instant,
}

impl KeyMaker {
    /// Begins with a new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(now: Instant) -> Result<Self, NoRandomness> {
        Ok(Self::from(vec![TicketKey::random()?], now))
    }

    /// Goes on with keys of another process; the next one is made a whole period from now.
    pub fn from(mut keys: Vec<TicketKey>, now: Instant) -> Self {
        keys.truncate(KEYS_MAX);
        Self {
            keys,
            renew_at: now + PERIOD,
        }
    }

    /// The keys in force, the newest first.
    pub fn keys(&self) -> &[TicketKey] {
        &self.keys
    }

    /// When [`Self::renew`] has something to do.
    pub fn renew_at(&self) -> Instant {
        self.renew_at
    }

    /// Makes the next key when it is time, and forgets what is two periods old. Says whether there is
    /// one.
    pub fn renew(&mut self, now: Instant) -> bool {
        if now < self.renew_at {
            return false;
        }
        self.renew_at = now + PERIOD;
        let Ok(next) = TicketKey::random() else {
            // The old ones go on for a period more.
            return false;
        };
        self.keys.insert(0, next);
        self.keys.truncate(2);
        true
    }
}

/// The system has no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRandomness;

impl fmt::Display for NoRandomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the system has no randomness")
    }
}

impl std::error::Error for NoRandomness {}

struct Ready {
    name: [u8; NAME_LEN],
    key: RandomizedNonceKey,
}

/// The keys in force, shared by all cores of a worker. Without keys no tickets are made.
#[derive(Clone)]
pub struct Tickets(Arc<ArcSwap<Vec<Ready>>>);

impl Default for Tickets {
    fn default() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Vec::new())))
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tickets")
            .field(&self.0.load().len())
            .finish()
    }
}

impl Tickets {
    /// Puts these keys in force: the first makes tickets, all read them. Beyond [`KEYS_MAX`] they are
    /// left out.
    pub fn install(&self, keys: &[TicketKey]) {
        let ready = keys.iter().take(KEYS_MAX).filter_map(|key| {
            let name = key.name;
            let key = RandomizedNonceKey::new(&AES_256_GCM, &key.key).ok()?;
            Some(Ready { name, key })
        });
        self.0.store(Arc::new(ready.collect()));
    }

    /// Those of a site. What it is told apart by goes into each ticket.
    pub fn of_site(&self, site: &str) -> SiteTickets {
        SiteTickets {
            tickets: self.clone(),
            site: site.into(),
        }
    }
}

/// The tickets of one site.
#[derive(Clone, Debug)]
pub struct SiteTickets {
    tickets: Tickets,
    site: Arc<str>,
}

impl SiteTickets {
    /// Those of the site that are told apart by something more.
    pub(super) fn within(&self, scope: &str) -> Self {
        Self {
            tickets: self.tickets.clone(),
            // No name of a site has a zero in it.
            site: format!("{}\0{scope}", self.site).into(),
        }
    }

    /// What is authenticated beside the session: the key's name, and whose session it is.
    fn context(&self, name: &[u8]) -> Vec<u8> {
        [name, self.site.as_bytes()].concat()
    }
}

impl ProducesTickets for SiteTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        PERIOD.as_secs() as u32
    }

    /// Name of the key, nonce, ciphertext, tag.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.tickets.0.load();
        let Ready { name, key } = keys.first()?;
        let room = NAME_LEN + NONCE_LEN + plain.len() + TAG_LEN;
        if room > TICKET_MAX {
            return None;
        }
        let mut sealed = plain.to_vec();
        let context = self.context(name);
        let nonce = key.seal_in_place_append_tag(Aad::from(&*context), &mut sealed);
        let mut ticket = Vec::with_capacity(room);
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(nonce.ok()?.as_ref());
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_MAX {
            return None;
        }
        let (name, rest) = ticket.split_at_checked(NAME_LEN)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.tickets.0.load();
        let Ready { key, .. } = keys.iter().find(|key| key.name == *name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = sealed.to_vec();
        let context = self.context(name);
        let length = key
            .open_in_place(nonce, Aad::from(&*context), &mut plain)
            .ok()?
            .len();
        plain.truncate(length);
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(keys: &[&TicketKey]) -> Tickets {
        let tickets = Tickets::default();
        let keys: Vec<_> = keys.iter().map(|key| (*key).clone()).collect();
        tickets.install(&keys);
        tickets
    }

    #[test]
    fn a_ticket_is_good_for_its_site_as_long_as_its_key_is_there() {
        let [old, new] = [(); 2].map(|()| TicketKey::random().unwrap());
        let before = with(&[&old]).of_site("a.example");
        let ticket = before.encrypt(b"session").unwrap();
        assert_ne!(before.encrypt(b"session").unwrap(), ticket);
        let after = with(&[&new, &old]);
        assert_eq!(
            after.of_site("a.example").decrypt(&ticket).unwrap(),
            b"session"
        );
        assert_eq!(after.of_site("b.example").decrypt(&ticket), None);
        assert_eq!(
            before.decrypt(&after.of_site("a.example").encrypt(b"x").unwrap()),
            None
        );
        after.install(&[new]);
        assert_eq!(after.of_site("a.example").decrypt(&ticket), None);
        assert_eq!(Tickets::default().of_site("a").encrypt(b"x"), None);
    }

    #[test]
    fn a_key_makes_tickets_for_one_period_and_reads_them_for_two() {
        let now = Instant::now();
        let mut maker = KeyMaker::new(now).unwrap();
        assert!(!maker.renew(now));
        let first = maker.keys()[0].clone();
        assert!(maker.renew(now + PERIOD));
        assert_eq!((maker.keys().len(), &maker.keys()[1]), (2, &first));
        assert!(!maker.renew(now + PERIOD));
        assert!(maker.renew(now + 2 * PERIOD));
        assert!(!maker.keys().contains(&first));
        let heir = KeyMaker::from(maker.keys().to_vec(), now + 2 * PERIOD);
        assert_eq!(heir.keys(), maker.keys());
    }

    #[test]
    fn a_changed_or_cut_ticket_is_worth_nothing() {
        let tickets = with(&[&TicketKey::random().unwrap()]).of_site("a");
        let ticket = tickets.encrypt(b"session").unwrap();
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None, "{at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "{at}");
        }
        assert_eq!(tickets.decrypt(&vec![0; TICKET_MAX + 1]), None);
        assert_eq!(tickets.encrypt(&vec![0; TICKET_MAX]), None);
    }
}

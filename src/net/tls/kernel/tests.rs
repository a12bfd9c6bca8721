//! Connections whose sending direction is given away, to a kernel of a few lines.

use std::mem::{offset_of, size_of};

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use proptest::prelude::*;

use super::super::layer::KEY_UPDATES_MAX;
use super::super::testing::{Pair, SUITES, feed, open_pair, sent};
use super::super::{Failure, Plain};
use super::*;

/// What the kernel does with the structures of linux/tls.h (net/tls/tls_sw.c, tls.h), as libc has them.
struct Kernel {
    version: u16,
    cipher: u16,
    iv: Vec<u8>,
    salt: Vec<u8>,
    key: LessSafeKey,
    next: u64,
}

macro_rules! fields {
    ($bytes:expr, $kind:ty) => {{
        let field = |at: usize, length: usize| $bytes[at..at + length].to_vec();
        assert_eq!($bytes.len(), size_of::<$kind>());
        // The last field ends with the structure, the others where the next one begins.
        let (iv, key) = (offset_of!($kind, iv), offset_of!($kind, key));
        let (salt, next) = (offset_of!($kind, salt), offset_of!($kind, rec_seq));
        (
            field(iv, key - iv),
            field(key, salt - key),
            field(salt, next - salt),
            field(next, $bytes.len() - next),
        )
    }};
}

impl Kernel {
    fn new(keys: &Keys) -> Self {
        let bytes = keys.bytes();
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let cipher = number(2);
        let (algorithm, (iv, key, salt, next)) = match cipher {
            libc::TLS_CIPHER_AES_GCM_128 => (
                &AES_128_GCM,
                fields!(bytes, libc::tls12_crypto_info_aes_gcm_128),
            ),
            libc::TLS_CIPHER_AES_GCM_256 => (
                &AES_256_GCM,
                fields!(bytes, libc::tls12_crypto_info_aes_gcm_256),
            ),
            libc::TLS_CIPHER_CHACHA20_POLY1305 => (
                &CHACHA20_POLY1305,
                fields!(bytes, libc::tls12_crypto_info_chacha20_poly1305),
            ),
            other => panic!("cipher {other}"),
        };
        Self {
            version: number(0),
            cipher,
            iv,
            salt,
            key: LessSafeKey::new(UnboundKey::new(algorithm, &key).unwrap()),
            next: u64::from_be_bytes(next.try_into().unwrap()),
        }
    }

    /// A record, as the client gets it.
    fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let is_13 = self.version == libc::TLS_1_3_VERSION;
        let explicit = !is_13 && self.cipher != libc::TLS_CIPHER_CHACHA20_POLY1305;
        let mut nonce: Vec<u8> = [&self.salt[..], &self.iv].concat();
        if !explicit {
            for (byte, other) in nonce[4..].iter_mut().zip(self.next.to_be_bytes()) {
                *byte ^= other;
            }
        }
        let mut inner = content.to_vec();
        if is_13 {
            inner.push(kind);
        }
        let before = if explicit { self.iv.len() } else { 0 };
        let length = (before + inner.len() + 16) as u16;
        let outer = if is_13 { 23 } else { kind };
        let header = [&[outer, 3, 3][..], &length.to_be_bytes()].concat();
        let aad = match is_13 {
            true => header.clone(),
            false => {
                let plain = (inner.len() as u16).to_be_bytes();
                [&self.next.to_be_bytes()[..], &[kind, 3, 3], &plain].concat()
            }
        };
        let nonce = Nonce::try_assume_unique_for_key(&nonce).unwrap();
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(&aad), &mut inner)
            .unwrap();
        let record = [&header[..], &self.iv[..before], &inner].concat();
        self.next += 1;
        if explicit {
            let counter = u64::from_be_bytes(self.iv[..].try_into().unwrap());
            self.iv = (counter + 1).to_be_bytes().to_vec();
        }
        record
    }
}

#[test]
fn the_kernel_goes_on_where_we_stopped_and_what_comes_is_still_read() {
    for (index, suite) in SUITES.into_iter().enumerate() {
        let mut pair = open_pair(suite);
        // Both directions have been in use.
        pair.server.send(b"ours", &mut pair.out).unwrap();
        pair.client_sends(b"");
        pair.exchange();
        let before = pair.server.handshake();
        let kind = pair.server.kernel_kind().unwrap();
        assert!(kind.is_among(1 << index) && !kind.is_among(!(1 << index)));
        let keys = pair.server.hand_over().unwrap();
        assert_eq!(keys.kind, kind);
        assert_eq!(pair.server.handshake(), before);
        assert_eq!(pair.server.kernel_kind(), None, "once");
        assert!(pair.server.send(b"never", &mut pair.out).is_err());
        let mut kernel = Kernel::new(&keys);
        for round in 0..3 {
            let content = vec![round; 1 << 14];
            let record = kernel.record(23, &content);
            assert!(feed(&mut pair.client, &record) == content, "{suite:?}");
            let ciphertext = pair.client_sends(&content[..20_000 % content.len()]);
            let mut got = Vec::new();
            for part in ciphertext.chunks(1 + 1000 * usize::from(round)) {
                got.append(&mut pair.receive(part));
            }
            assert!(got == content[..20_000 % content.len()], "{suite:?}");
        }
        // What the kernel gives back tells how far it is.
        let (mut room, length) = room_for(kind);
        assert_eq!(length, keys.bytes().len());
        room[..length].copy_from_slice(keys.bytes());
        let first = next_record(&mut room[..length]).unwrap();
        assert_eq!((first + 3, room), (kernel.next, [0; LARGEST]));
        // Each end tells the other.
        pair.server.close(&mut pair.out);
        let alert = pair.server.take_alert().unwrap();
        assert_eq!(pair.server.take_alert(), None);
        feed(&mut pair.client, &kernel.record(ALERT, &alert));
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
        pair.client.send_close_notify();
        let bytes = pair.client_sends(b"");
        assert_eq!(pair.receive(&bytes), b"");
        assert!(pair.server.is_peer_closed());
        assert_eq!(pair.out, b"", "all that is sent is the kernel's");
    }
}

#[test]
fn nothing_is_given_away_while_something_is_held_or_ends() {
    let mut pair = open_pair(SUITES[3]);
    let bytes = pair.client_sends(b"a request");
    pair.receive(&bytes[..10]);
    assert_eq!(pair.server.kernel_kind(), None, "a part of a record");
    pair.receive(&bytes[10..]);
    assert!(pair.server.kernel_kind().is_some());
    pair.server.close(&mut pair.out);
    assert_eq!(pair.server.kernel_kind(), None, "the end was told");
    // Who does so all the same has lost the connection, and nothing leaves in the clear.
    assert_eq!(pair.server.hand_over().err(), Some(Failure::Ours));
    assert_eq!(pair.server.send(b"x", &mut Vec::new()), Err(Failure::Ours));
    assert!(pair.server.receive(&mut [0; 9], &mut Vec::new()).is_err());
}

#[test]
fn a_client_may_go_on_with_other_keys_but_can_t_have_others_of_ours() {
    let mut pair = open_pair(SUITES[3]);
    let keys = pair.server.hand_over().unwrap();
    let mut kernel = Kernel::new(&keys);
    for _ in 0..KEY_UPDATES_MAX + 8 {
        pair.client.refresh_traffic_keys().unwrap();
        let bytes = pair.client_sends(b"with new keys");
        assert_eq!(pair.receive(&bytes), b"with new keys");
        assert!(pair.server.is_asked_for_keys());
    }
    let record = kernel.record(23, b"with old keys");
    assert_eq!(feed(&mut pair.client, &record), b"with old keys");
    // Without anything in between, they are a flood.
    let mut result = Ok(());
    for _ in 0..=KEY_UPDATES_MAX {
        pair.client.refresh_traffic_keys().unwrap();
        let mut bytes = sent(&mut pair.client);
        result = pair.server.receive(&mut bytes, &mut pair.out).map(drop);
    }
    assert_eq!(result, Err(Failure::Protocol));
    assert_eq!(pair.server.take_alert(), Some([2, 10]));
}

/// What a client sends.
type Sends = &'static dyn Fn(&mut Pair) -> Vec<u8>;

#[test]
fn what_breaks_the_protocol_is_told_by_an_alert_of_the_kernel() {
    let broken: [(&str, Sends, Failure, Option<[u8; 2]>); 5] = [
        (
            "changed on its way",
            &|pair| {
                let mut bytes = pair.client_sends(b"a request");
                *bytes.last_mut().unwrap() ^= 1;
                bytes
            },
            Failure::BadRecord,
            Some([2, 20]),
        ),
        (
            "too long",
            &|_| vec![23, 3, 3, 0xff, 0xff],
            Failure::Protocol,
            Some([2, 22]),
        ),
        (
            "another version",
            &|_| vec![23, 2, 0, 0, 5],
            Failure::Protocol,
            Some([2, 50]),
        ),
        (
            "without content",
            &|_| vec![23, 3, 3, 0, 0],
            Failure::Protocol,
            Some([2, 50]),
        ),
        (
            "in the clear",
            &|_| vec![20, 3, 3, 0, 1, 1],
            Failure::BadRecord,
            None,
        ),
    ];
    for suite in [SUITES[0], SUITES[3]] {
        for (what, bytes, failure, alert) in &broken {
            let mut pair = open_pair(suite);
            pair.server.hand_over().unwrap();
            let mut bytes = bytes(&mut pair);
            let told = pair.server.receive(&mut bytes, &mut pair.out).err();
            match alert {
                Some(_) => {
                    assert_eq!(told, Some(*failure), "{what} {suite:?}");
                    assert_eq!(pair.server.take_alert(), *alert, "{what} {suite:?}");
                }
                // As what it looks depends on the version.
                None => assert!(told.is_some() && pair.server.take_alert().is_some()),
            }
            pair.server.close(&mut pair.out);
            assert_eq!(pair.server.take_alert(), None, "it has ended: {what}");
        }
    }
}

#[test]
fn no_nonce_of_ours_comes_again() {
    for first in [[0; 8], [0xff; 8], [0x7f, 0xff, 0, 0, 0, 0, 0, 1]] {
        let kernels = u64::from_be_bytes(first_explicit_nonce(&first));
        let ours = u64::from_be_bytes(first);
        // Both count up to 2^48, one by changing these bits, the other by adding.
        assert_eq!(kernels & ((1 << 48) - 1), 0);
        assert_ne!(kernels >> 63, ours >> 63);
    }
}

#[test]
fn samples_are_in_the_order_of_the_bits() {
    for (index, keys) in Keys::samples().iter().enumerate() {
        assert_eq!(keys.kind.bit(), 1 << index);
        Kernel::new(keys);
    }
    assert_eq!(
        names(0b1001),
        ["TLSv1.2 AES-128-GCM", "TLSv1.3 AES-128-GCM"]
    );
    assert!(!Keys::samples()[2].kind.wears_out() && Keys::samples()[3].kind.wears_out());
}

proptest! {
    #[test]
    fn whatever_comes_is_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        cut in 0_usize..300,
        which in 0_usize..6,
    ) {
        let mut pair = open_pair(SUITES[which]);
        pair.server.hand_over().unwrap();
        let mut sent = pair.client_sends(b"a request");
        sent.truncate(cut);
        sent.extend_from_slice(&bytes);
        for part in sent.chunks_mut(70) {
            match pair.server.receive(part, &mut pair.out) {
                Ok(Plain::InPlace(length)) => prop_assert!(length <= part.len()),
                Ok(Plain::Gathered(plain)) => prop_assert_eq!(plain, b"a request"),
                Err(_) => break,
            }
        }
        prop_assert_eq!(&*pair.out, b"");
    }
}

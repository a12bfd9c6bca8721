//! Content negotiation by Accept-Encoding (RFC 9110 §12.5.3).

use crate::http::types::Fields;

/// A content coding that the server can offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Zstandard (RFC 8878).
    Zstd,
    /// Brotli (RFC 7932).
    Brotli,
    /// gzip (RFC 1952).
    Gzip,
}

impl Coding {
    /// All codings, in the default order of preference.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];

    /// The token in Content-Encoding.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    /// What follows the name of a file that was compressed beforehand.
    pub const fn file_suffix(self) -> &'static str {
        match self {
            Self::Zstd => ".zst",
            Self::Brotli => ".br",
            Self::Gzip => ".gz",
        }
    }

    /// The coding of a token, ASCII case ignored; `x-gzip` is gzip (RFC 9110 §8.4.1.3).
    pub fn from_token(token: &[u8]) -> Option<Self> {
        if token.eq_ignore_ascii_case(b"x-gzip") {
            return Some(Self::Gzip);
        }
        Self::ALL
            .into_iter()
            .find(|coding| token.eq_ignore_ascii_case(coding.token().as_bytes()))
    }
}

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The form in this coding.
    Coded(Coding),
    /// The form without a coding.
    Identity,
    /// The client accepts none of the available forms, and refuses the plain one explicitly. The
    /// RFC allows the plain form all the same as well as 406.
    NotAcceptable,
}

/// A weight in thousandths, 0 to 1000; `None` where the client said nothing.
type Weight = Option<u16>;

/// Chooses by the client's weights, and among equal ones by the order of `available`.
///
/// Several field lines are one list. A coding that is neither named nor covered by `*` is not
/// acceptable; the plain form always is, as the last resort, unless its weight is 0. A member whose
/// weight is malformed is ignored. A request without the field gets the plain form.
pub fn choose(fields: &Fields<'_>, available: &[Coding]) -> Choice {
    let accepted = Accepted::read(fields);
    let mut best: Option<(Coding, u16)> = None;
    for &coding in available {
        let weight = accepted.weight(coding);
        if weight > best.map_or(0, |(_, weight)| weight) {
            best = Some((coding, weight));
        }
    }
    let identity = accepted.identity;
    match best {
        // Without a weight of its own the plain form is only what remains.
        Some((coding, weight)) if weight >= identity.unwrap_or(0) => Choice::Coded(coding),
        _ if identity.or(accepted.any) == Some(0) => Choice::NotAcceptable,
        _ => Choice::Identity,
    }
}

/// The members of Accept-Encoding that matter here.
#[derive(Debug, Default)]
struct Accepted {
    /// By the order of [`Coding::ALL`].
    codings: [Weight; 3],
    identity: Weight,
    any: Weight,
}

impl Accepted {
    fn read(fields: &Fields<'_>) -> Self {
        let mut accepted = Self::default();
        for value in fields.get_all("accept-encoding") {
            for member in value.split(|byte| *byte == b',') {
                accepted.add(member);
            }
        }
        accepted
    }

    fn add(&mut self, member: &[u8]) {
        let mut parts = member.split(|byte| *byte == b';');
        let token = parts.next().unwrap_or(b"").trim_ascii();
        let Some(weight) = weight(parts) else { return };
        if let Some(coding) = Coding::from_token(token) {
            self.codings[coding as usize] = Some(weight);
        } else if token == b"*" {
            self.any = Some(weight);
        } else if token.eq_ignore_ascii_case(b"identity") {
            self.identity = Some(weight);
        }
    }

    fn weight(&self, coding: Coding) -> u16 {
        self.codings[coding as usize].or(self.any).unwrap_or(0)
    }
}

/// The weight among a member's parameters, 1000 without one; `None` where it is malformed.
fn weight<'b>(parameters: impl Iterator<Item = &'b [u8]>) -> Option<u16> {
    let mut weight = 1000;
    for parameter in parameters {
        if let [b'q' | b'Q', b'=', value @ ..] = parameter.trim_ascii() {
            weight = parse_weight(value)?;
        }
    }
    Some(weight)
}

/// `qvalue` (RFC 9110 §12.4.2): 0 to 1 with at most three decimals.
fn parse_weight(value: &[u8]) -> Option<u16> {
    let (whole, decimals) = match value {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut weight = u16::from(whole - b'0') * 1000;
    let mut unit = 100;
    for digit in decimals {
        if !digit.is_ascii_digit() {
            return None;
        }
        weight += u16::from(digit - b'0') * unit;
        unit /= 10;
    }
    (weight <= 1000).then_some(weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chosen(lines: &[&'static str], available: &[Coding]) -> &'static str {
        let mut fields = Fields::default();
        for line in lines {
            fields.push("Accept-Encoding", line.as_bytes());
        }
        match choose(&fields, available) {
            Choice::Coded(coding) => coding.token(),
            Choice::Identity => "identity",
            Choice::NotAcceptable => "none",
        }
    }

    #[test]
    fn the_weight_decides_then_the_server() {
        for (value, expected) in [
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, deflate, br", "br"),
            ("gzip", "gzip"),
            ("x-gzip", "gzip"),
            ("GZip;Q=0.5", "gzip"),
            ("deflate", "identity"),
            ("", "identity"),
            (",,", "identity"),
            ("zstd;q=0.5, br;q=0.9, gzip;q=0.9", "br"),
            ("zstd;q=0.001, gzip;q=0.002", "gzip"),
            ("zstd;q=0, *", "br"),
            ("*", "zstd"),
            ("*;q=0.5, gzip;q=1.0", "gzip"),
            ("gzip;q=0.5, identity", "identity"),
            ("gzip, identity;q=0.5", "gzip"),
            ("gzip;q=1, identity;q=1", "gzip"),
            ("gzip;q=0", "identity"),
            ("*;q=0", "none"),
            ("identity;q=0", "none"),
            ("deflate, identity;q=0", "none"),
            ("*;q=0, identity", "identity"),
            ("*;q=0, gzip", "gzip"),
            ("identity;q=0, gzip;q=0.1", "gzip"),
            ("gzip ; q=0.3 , br ; q=0.2", "gzip"),
            // Malformed weights are not guessed.
            ("zstd;q=2, gzip", "gzip"),
            ("zstd;q=0.1234, gzip", "gzip"),
            ("zstd;q=-1", "identity"),
            ("zstd;q=1.001, br;q=1.000", "br"),
            ("zstd;level=3;q=0.1, br;q=0.2", "br"),
            ("zstdx", "identity"),
        ] {
            assert_eq!(chosen(&[value], &Coding::ALL), expected, "{value}");
        }
    }

    #[test]
    fn only_what_is_available_is_chosen_in_the_order_of_the_server() {
        use Coding::{Brotli, Gzip, Zstd};
        assert_eq!(chosen(&["br, gzip, zstd"], &[Gzip, Brotli]), "gzip");
        assert_eq!(chosen(&["br, zstd"], &[Gzip]), "identity");
        assert_eq!(chosen(&["*"], &[]), "identity");
        assert_eq!(chosen(&["*;q=0.1, identity;q=0"], &[Zstd]), "zstd");
    }

    #[test]
    fn lines_are_one_list_and_none_means_plain() {
        assert_eq!(chosen(&[], &Coding::ALL), "identity");
        assert_eq!(chosen(&["gzip;q=0.1", "br;q=0.2"], &Coding::ALL), "br");
    }

    proptest! {
        #[test]
        fn a_refused_coding_is_never_sent(value in "[a-z*;=,.01q ]{0,40}") {
            let value = format!("{value},gzip;q=0");
            let mut fields = Fields::default();
            fields.push("accept-encoding", value.as_bytes());
            prop_assert_ne!(choose(&fields, &Coding::ALL), Choice::Coded(Coding::Gzip));
        }
    }
}

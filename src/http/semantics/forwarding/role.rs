//! What each field of a message is to a proxy, by its name.
//!
//! All fields of a head are looked up once, so the lookup has to be cheap for those that mean nothing
//! here, which is most of them: length and first letter decide nearly always, without a comparison.

use smallvec::SmallVec;

/// The roles of all fields of a message, in their order.
pub(super) type Roles = SmallVec<[Role; 32]>;

/// What a field is to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing of the following: it is between client and backend.
    EndToEnd,
    /// Connection.
    Connection,
    /// TE.
    Te,
    /// Trailer.
    Trailer,
    /// Upgrade.
    Upgrade,
    /// Content-Length.
    ContentLength,
    /// Another one that is always about one connection, for a proxy, or owned by the framing
    /// (RFC 9110 §7.6.1, §11.7, RFC 9112 §6).
    OfConnection,
    /// Host, which frames nothing, but which the proxy writes itself.
    Host,
    /// Expect, of the same kind.
    Expect,
    /// Via, of the same kind as far as operations of the configuration go. It is passed on.
    Via,
    /// It is about the client and how it came, and is written anew: Forwarded, X-Forwarded-For, -Proto
    /// and -Host.
    Hop,
    /// It is about the client and how it came. It is believed from listed peers alone.
    AboutClient,
}

impl Role {
    /// The role of a field of that name, ASCII case ignored.
    pub(super) fn of(name: &str) -> Self {
        let first = name.as_bytes().first().map_or(0, |byte| byte | 0x20);
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match (name.len(), first) {
            (2, b't') if is("te") => Self::Te,
            (3, b'v') if is("via") => Self::Via,
            (4, b'h') if is("host") => Self::Host,
            // Scripts that read HTTP_PROXY from their environment would believe it.
            (5, b'p') if is("proxy") => Self::OfConnection,
            (6, b'e') if is("expect") => Self::Expect,
            (7, b't') if is("trailer") => Self::Trailer,
            (7, b'u') if is("upgrade") => Self::Upgrade,
            (9, b'f') if is("forwarded") => Self::Hop,
            (9, b'x') if is("x-real-ip") => Self::AboutClient,
            (10, b'c') if is("connection") => Self::Connection,
            (10, b'k') if is("keep-alive") => Self::OfConnection,
            (14, b'c') if is("content-length") => Self::ContentLength,
            (14, b'h') if is("http2-settings") => Self::OfConnection,
            (16, b'p') if is("proxy-connection") => Self::OfConnection,
            (17, b't') if is("transfer-encoding") => Self::OfConnection,
            (18, b'p') if is("proxy-authenticate") => Self::OfConnection,
            (19, b'p') if is("proxy-authorization") => Self::OfConnection,
            (25, b'p') if is("proxy-authentication-info") => Self::OfConnection,
            (12.., b'x') => Self::of_extension(name.as_bytes()),
            _ => Self::EndToEnd,
        }
    }

    fn of_extension(name: &[u8]) -> Self {
        let (start, rest) = name.split_at(12);
        if !start.eq_ignore_ascii_case(b"x-forwarded-") {
            return Self::EndToEnd;
        }
        let rewritten: [&[u8]; 3] = [b"for", b"proto", b"host"];
        match rewritten
            .iter()
            .any(|other| rest.eq_ignore_ascii_case(other))
        {
            true => Self::Hop,
            false => Self::AboutClient,
        }
    }

    /// Whether the field ends at this proxy, and is written anew where it is needed.
    pub(super) fn is_hop_by_hop(self) -> bool {
        match self {
            Self::Connection
            | Self::Te
            | Self::Trailer
            | Self::Upgrade
            | Self::ContentLength
            | Self::OfConnection => true,
            Self::EndToEnd
            | Self::Host
            | Self::Expect
            | Self::Via
            | Self::Hop
            | Self::AboutClient => false,
        }
    }

    /// Whether the field tells of the client and how it came.
    pub(super) fn is_about_client(self) -> bool {
        matches!(self, Self::Hop | Self::AboutClient)
    }

    /// Whether the proxy alone writes it, so that no operation may.
    pub(super) fn is_owned(self) -> bool {
        self.is_hop_by_hop() || matches!(self, Self::Host | Self::Via | Self::Expect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_role_in_any_case() {
        for (names, role) in [
            ("te", Role::Te),
            ("via", Role::Via),
            ("host", Role::Host),
            ("expect", Role::Expect),
            ("trailer", Role::Trailer),
            ("upgrade", Role::Upgrade),
            ("connection", Role::Connection),
            ("content-length", Role::ContentLength),
            (
                "proxy keep-alive http2-settings proxy-connection transfer-encoding \
                 proxy-authenticate proxy-authorization proxy-authentication-info",
                Role::OfConnection,
            ),
            (
                "forwarded x-forwarded-for x-forwarded-proto x-forwarded-host",
                Role::Hop,
            ),
            (
                "x-real-ip x-forwarded-port x-forwarded- x-forwarded-fo",
                Role::AboutClient,
            ),
            (
                "x accept x-forwarded x-forwarded_for x-request-id proxies cookie",
                Role::EndToEnd,
            ),
        ] {
            for name in names.split_whitespace() {
                assert_eq!(Role::of(name), role, "{name}");
                assert_eq!(Role::of(&name.to_ascii_uppercase()), role, "{name}");
            }
        }
        assert_eq!(Role::of(""), Role::EndToEnd);
    }

    #[test]
    fn what_ends_here_is_never_about_the_client() {
        for name in ["te", "keep-alive", "content-length", "proxy"] {
            let role = Role::of(name);
            assert!(role.is_hop_by_hop() && role.is_owned() && !role.is_about_client());
        }
        for name in ["forwarded", "x-real-ip", "x-forwarded-host"] {
            let role = Role::of(name);
            assert!(role.is_about_client() && !role.is_hop_by_hop() && !role.is_owned());
        }
    }
}

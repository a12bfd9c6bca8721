//! What binds a request to a server: the key of a consistent hash, or the cookie that names a server.

use std::borrow::Cow;

use super::Asked;
use crate::config::model::{Balance, HashKey};
use crate::handlers::backends::Backend;
use crate::http::types::{FieldValue, Fields};
use crate::upstream::group::Claim;

/// The key of a request; `None` when it has none, or nothing is bound.
pub(super) fn of<'r>(backend: &Backend, asked: &Asked<'r, '_>) -> Option<Cow<'r, [u8]>> {
    let request = asked.request;
    match &backend.proxy.upstream.balance {
        Balance::Spread(_) => None,
        Balance::Sticky(sticky) => cookie_of(&request.fields, &sticky.cookie).map(Cow::Borrowed),
        Balance::Hash { by, .. } => match by {
            HashKey::Client => {
                let address = asked.client.address?;
                Some(Cow::Owned(address.to_canonical().to_string().into_bytes()))
            }
            HashKey::Path => Some(Cow::Borrowed(request.path.as_bytes())),
            HashKey::Header(name) => request.fields.get(name.as_str()).map(Cow::Borrowed),
            HashKey::Cookie(name) => cookie_of(&request.fields, name).map(Cow::Borrowed),
        },
    }
}

/// The value of the Set-Cookie field that binds the client to the server that has answered, unless
/// `key` does so already.
pub(super) fn cookie(backend: &Backend, claim: &Claim, key: Option<&[u8]>) -> Option<FieldValue> {
    let Balance::Sticky(sticky) = &backend.proxy.upstream.balance else {
        return None;
    };
    let value = claim.cookie_to_set(key)?;
    let (name, value) = (&sticky.cookie, value.as_str());
    let mut text = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax");
    if let Some(age) = sticky.max_age {
        text.push_str(&format!("; Max-Age={}", age.as_secs()));
    }
    if sticky.secure {
        text.push_str("; Secure");
    }
    Some(FieldValue::from(text))
}

/// The value of the first cookie of this name (RFC 6265 §5.4).
fn cookie_of<'r>(fields: &Fields<'r>, name: &str) -> Option<&'r [u8]> {
    for (field, value) in fields.iter() {
        if !field.eq_ignore_ascii_case("cookie") {
            continue;
        }
        for pair in value.split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            if let Some(value) = pair
                .strip_prefix(name.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"="))
            {
                return Some(value);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let mut fields = Fields::default();
        fields.push("Cookie", b"abc=1; ab=2");
        fields.push("cookie", b" a=3 ;b=4; a=5");
        for (name, value) in [
            ("a", Some("3")),
            ("ab", Some("2")),
            ("b", Some("4")),
            ("c", None),
        ] {
            assert_eq!(cookie_of(&fields, name), value.map(str::as_bytes), "{name}");
        }
    }
}

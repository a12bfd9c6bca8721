//! What an administrator wants to know of a certificate revocation list (RFC 5280 §5.1): whose it is and
//! how long it holds. Whether a certificate is on it is asked where it is verified.

use super::{BIT_STRING, Der, GENERALIZED_TIME, INTEGER, SEQUENCE, UTC_TIME, time};

/// What is read of a revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListFacts {
    /// The content of the issuer's name, as [`Parts::subject`](super::Parts::subject) of its authority.
    pub issuer: Box<[u8]>,
    /// From when on it holds, in seconds since 1970.
    pub this_update: i64,
    /// When another one follows at the latest, in seconds since 1970; `None` where it doesn't say.
    pub next_update: Option<i64>,
}

/// Reads a revocation list in DER; `None` where it is none.
pub fn read_list(der: &[u8]) -> Option<ListFacts> {
    let mut list = Der(Der(der).expect(SEQUENCE)?);
    let mut body = Der(list.expect(SEQUENCE)?);
    let _algorithm = list.expect(SEQUENCE)?;
    let _signature = list.expect(BIT_STRING)?;
    body.optional(INTEGER)?;
    let _algorithm = body.expect(SEQUENCE)?;
    let issuer = body.expect(SEQUENCE)?.into();
    let this_update = time(body.next()?)?;
    let next_update = match body.0.first() {
        Some(&(UTC_TIME | GENERALIZED_TIME)) => Some(time(body.next()?)?),
        _ => None,
    };
    Some(ListFacts {
        issuer,
        this_update,
        next_update,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use super::super::parts;
    use super::*;

    #[test]
    fn its_issuer_and_times_are_told_and_a_cut_one_is_none() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 2),
            next_update: date_time_ymd(2150, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::new(params, &key)).unwrap();
        let facts = read_list(list.der()).unwrap();
        assert_eq!(*facts.issuer, *parts(authority.der()).unwrap().subject);
        assert_eq!(facts.this_update, 86_400);
        assert_eq!(facts.next_update, Some(5_680_281_600));
        for end in 0..list.der().len() {
            assert_eq!(read_list(&list.der()[..end]), None, "{end}");
        }
        assert_eq!(read_list(authority.der()), None);
    }
}

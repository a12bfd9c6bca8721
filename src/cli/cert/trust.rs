//! `beltway cert trust`: how to have clients trust the local authority. It tells the commands and runs
//! none: who is trusted is for people to decide.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use crate::certificates::{Authority, Places};
use crate::http::semantics::date;

const EXAMPLES: &str = "\
Examples:
  beltway cert trust                   what to do, for a server that you run yourself
  sudo beltway cert trust              and for one that root runs
  beltway cert trust --pem > beltway-local-ca.pem

Nothing is changed.";

/// The file that the commands are about.
const COPY: &str = "beltway-local-ca.pem";

pub(super) fn command() -> Command {
    Command::new("trust")
        .about("Say how to have clients trust the local authority")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("pem")
                .long("pem")
                .action(ArgAction::SetTrue)
                .help("Print its certificate alone"),
        )
        .arg(crate::cli::json_arg())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let failed = ExitCode::from(crate::cli::exit::FAILED);
    let authority = match Authority::find(&Places::of_this_process()) {
        Ok(Some(authority)) => authority,
        Ok(None) => {
            crate::cli::complain(
                "error: there is no local authority yet\n  \
                 = help: a server with `tls = \"self-signed\"` makes it when it starts; if root runs \
                 that one: sudo beltway cert trust\n",
            );
            return failed;
        }
        Err(problem) => {
            let (message, help) = (problem.message, problem.help);
            crate::cli::complain(&format!("error: {message}\n  = help: {help}\n"));
            return failed;
        }
    };
    let text = if crate::cli::given(matches, "pem") {
        authority.pem()
    } else if crate::cli::given(matches, "json") {
        format!("{:#}\n", to_json(&authority))
    } else {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let as_root = rustix::process::geteuid().is_root();
        to_text(&authority, System::of(&release), as_root)
    };
    crate::cli::say(&text);
    ExitCode::SUCCESS
}

/// How a system keeps what it trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    /// Debian and its relatives, and Alpine.
    UpdateCaCertificates,
    /// Fedora, RHEL, Arch, SUSE: p11-kit.
    TrustAnchor,
    Unknown,
}

impl System {
    /// From os-release(5).
    fn of(release: &str) -> Self {
        let words = release
            .lines()
            .filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")))
            .flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace());
        for word in words {
            match word {
                "debian" | "ubuntu" | "alpine" => return Self::UpdateCaCertificates,
                "fedora" | "rhel" | "centos" | "arch" | "suse" | "opensuse" => {
                    return Self::TrustAnchor;
                }
                _ => {}
            }
        }
        Self::Unknown
    }
}

fn update_ca_certificates() -> String {
    let installed = "/usr/local/share/ca-certificates/beltway-local-ca.crt";
    format!(
        "  sudo install -m 644 {COPY} {installed}\n  \
           sudo update-ca-certificates\n\
         and to take it back:\n  \
           sudo rm {installed} && sudo update-ca-certificates --fresh\n"
    )
}

fn trust_anchor() -> String {
    format!(
        "  sudo trust anchor {COPY}\n\
         and to take it back:\n  \
           sudo trust anchor --remove {COPY}\n"
    )
}

fn to_text(authority: &Authority, system: System, as_root: bool) -> String {
    let file = authority.file().unwrap_or_default();
    let name = &authority.name;
    let end = date::rfc3339(authority.not_after);
    let end = String::from_utf8_lossy(&end[..10]).into_owned();
    let sudo = if as_root { "sudo " } else { "" };
    let mut text = format!(
        "{name}\n  \
           file     {}\n  \
           until    {end}\n  \
           SHA-256  {}\n\n\
         A client that trusts it believes whoever has its key, for every site there is. So: on your own\n\
         machines alone, and the key, ca.key beside it, stays where it is.\n\n\
         First a copy of the certificate that everybody may read:\n  \
           {sudo}beltway cert trust --pem > {COPY}\n",
        file.display(),
        authority.fingerprint(),
    );
    let _ = match system {
        System::UpdateCaCertificates => {
            write!(
                text,
                "\nFor this system, as curl and most programs use it:\n{}",
                update_ca_certificates()
            )
        }
        System::TrustAnchor => {
            write!(
                text,
                "\nFor this system, as curl and most programs use it:\n{}",
                trust_anchor()
            )
        }
        System::Unknown => write!(
            text,
            "\nFor the system, if it is like Debian or Alpine:\n{}\
             \nFor the system, if it is like Fedora, Arch or SUSE:\n{}",
            update_ca_certificates(),
            trust_anchor()
        ),
    };
    // A name has graphic ASCII characters; a quote is none that a shell would let pass.
    let quoted = name.replace('\'', "'\\''");
    let _ = write!(
        text,
        "\nFor Chromium, which has a store of its own (certutil is in libnss3-tools or nss-tools):\n  \
           certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n '{quoted}' -i {COPY}\n\
         and to take it back:\n  \
           certutil -d sql:$HOME/.pki/nssdb -D -n '{quoted}'\n\
         \nFor Firefox, with the directory of the profile that about:profiles names, while it is closed:\n  \
           certutil -d sql:PROFILE -A -t C,, -n '{quoted}' -i {COPY}\n\
         \nFor one call of curl:\n  \
           curl --cacert {COPY} https://localhost/\n\
         \nOn a Mac, with the copy (Safari and Chrome):\n  \
           sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {COPY}\n\
         and to take it back:\n  \
           sudo security delete-certificate -c '{quoted}' /Library/Keychains/System.keychain\n\
         \nOn Windows, with the copy, as an administrator (Edge and Chrome):\n  \
           certutil -addstore Root {COPY}\n\
         and to take it back:\n  \
           certutil -delstore Root \"{name}\"\n\
         \nFor Java:\n  \
           sudo keytool -importcert -cacerts -storepass changeit -noprompt -alias beltway-local-ca -file {COPY}\n\
         and to take it back:\n  \
           sudo keytool -delete -cacerts -storepass changeit -alias beltway-local-ca\n"
    );
    text
}

fn to_json(authority: &Authority) -> serde_json::Value {
    json!({
        "name": authority.name,
        "file": authority.file().map(|file| file.to_string_lossy().into_owned()),
        "not_after": String::from_utf8_lossy(&date::rfc3339(authority.not_after)),
        "sha256": authority.fingerprint(),
        "pem": authority.pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::local_ca::Kept;

    fn authority() -> Authority {
        Authority {
            name: "Beltway local CA 0a1b2c3d box".into(),
            der: vec![0x30, 0],
            not_before: 0,
            not_after: 2_111_400_000,
            kept: Kept::At("/var/lib/beltway/local-ca".into()),
        }
    }

    #[test]
    fn systems_are_told_apart() {
        for (release, system) in [
            ("ID=debian\n", System::UpdateCaCertificates),
            (
                "NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
                System::UpdateCaCertificates,
            ),
            ("ID=alpine", System::UpdateCaCertificates),
            (
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
                System::TrustAnchor,
            ),
            ("ID=arch\n", System::TrustAnchor),
            ("ID=nixos\nPRETTY_NAME=\"debian\"\n", System::Unknown),
            ("", System::Unknown),
        ] {
            assert_eq!(System::of(release), system, "{release}");
        }
    }

    #[test]
    fn the_commands_are_those_of_the_system() {
        let text = to_text(&authority(), System::UpdateCaCertificates, true);
        insta::assert_snapshot!(text, @r#"
        Beltway local CA 0a1b2c3d box
          file     /var/lib/beltway/local-ca/ca.pem
          until    2036-11-27
          SHA-256  E4:F6:0D:0A:A6:D7:F3:D3:B6:A6:49:4B:1C:86:1B:99:F6:49:C6:F9:EC:51:AB:AF:20:1B:20:F2:97:32:7C:95

        A client that trusts it believes whoever has its key, for every site there is. So: on your own
        machines alone, and the key, ca.key beside it, stays where it is.

        First a copy of the certificate that everybody may read:
          sudo beltway cert trust --pem > beltway-local-ca.pem

        For this system, as curl and most programs use it:
          sudo install -m 644 beltway-local-ca.pem /usr/local/share/ca-certificates/beltway-local-ca.crt
          sudo update-ca-certificates
        and to take it back:
          sudo rm /usr/local/share/ca-certificates/beltway-local-ca.crt && sudo update-ca-certificates --fresh

        For Chromium, which has a store of its own (certutil is in libnss3-tools or nss-tools):
          certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n 'Beltway local CA 0a1b2c3d box' -i beltway-local-ca.pem
        and to take it back:
          certutil -d sql:$HOME/.pki/nssdb -D -n 'Beltway local CA 0a1b2c3d box'

        For Firefox, with the directory of the profile that about:profiles names, while it is closed:
          certutil -d sql:PROFILE -A -t C,, -n 'Beltway local CA 0a1b2c3d box' -i beltway-local-ca.pem

        For one call of curl:
          curl --cacert beltway-local-ca.pem https://localhost/

        On a Mac, with the copy (Safari and Chrome):
          sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain beltway-local-ca.pem
        and to take it back:
          sudo security delete-certificate -c 'Beltway local CA 0a1b2c3d box' /Library/Keychains/System.keychain

        On Windows, with the copy, as an administrator (Edge and Chrome):
          certutil -addstore Root beltway-local-ca.pem
        and to take it back:
          certutil -delstore Root "Beltway local CA 0a1b2c3d box"

        For Java:
          sudo keytool -importcert -cacerts -storepass changeit -noprompt -alias beltway-local-ca -file beltway-local-ca.pem
        and to take it back:
          sudo keytool -delete -cacerts -storepass changeit -alias beltway-local-ca
        "#);
        let text = to_text(&authority(), System::TrustAnchor, false);
        assert!(
            text.contains("\n  sudo trust anchor beltway-local-ca.pem\n"),
            "{text}"
        );
        assert!(!text.contains("update-ca-certificates") && !text.contains("sudo beltway"));
        let text = to_text(&authority(), System::Unknown, false);
        assert!(text.contains("trust anchor") && text.contains("update-ca-certificates"));
    }

    #[test]
    fn programs_get_the_certificate() {
        let json = to_json(&authority());
        assert_eq!(json["file"], "/var/lib/beltway/local-ca/ca.pem");
        assert_eq!(json["not_after"], "2036-11-27T12:00:00Z");
        assert!(
            json["pem"]
                .as_str()
                .unwrap()
                .starts_with("-----BEGIN CERTIFICATE-----\n")
        );
    }
}

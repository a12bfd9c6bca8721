//! The examples under `conf/` are right, and the reference is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use beltway::config::print;

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

fn check(file: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_beltway"))
        // The directories in them are examples.
        .args(["check", "--no-files", "-c"])
        .arg(file)
        .output()
        .expect("the program starts")
}

#[test]
fn every_example_passes_check() {
    let mut checked = 0;
    for directory in [conf(), conf().join("sites")] {
        for entry in fs::read_dir(directory).expect("it is there") {
            let path = entry.expect("it can be read").path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                let output = check(&path);
                assert!(
                    output.status.success(),
                    "{}: {}",
                    path.display(),
                    String::from_utf8_lossy(&output.stderr)
                );
                checked += 1;
            }
        }
    }
    assert!(checked >= 15, "only {checked} examples");
}

/// With `UPDATE_CONF=1` it writes the file.
#[test]
fn the_reference_has_every_key() {
    let path = conf().join("full-reference.toml");
    let expected = print::reference();
    if std::env::var_os("UPDATE_CONF").is_some() {
        fs::write(&path, &expected).expect("it can be written");
    }
    let written = fs::read_to_string(&path).expect("it is there");
    assert!(
        written == expected,
        "conf/full-reference.toml is not what the list of keys says: \
         run UPDATE_CONF=1 cargo test --test conf"
    );
}

#[test]
fn a_comment_in_the_reference_is_right_when_it_is_used() {
    // Each line that is commented out, alone, in the site of the reference.
    for line in print::reference().lines() {
        let Some(used) = line
            .strip_prefix("# ")
            .filter(|used| used.starts_with('"') && used.contains(" = "))
        else {
            continue;
        };
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.toml");
        let text = format!("[site.\":1\"]\nroot = \"/\"\n[site.\":1\".routes]\n{used}\n");
        fs::write(&file, text).expect("it can be written");
        let output = check(&file);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{used}\n{errors}");
    }
}

#[test]
fn exit_codes_tell_usage_from_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let code = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_beltway"))
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .expect("the program starts")
            .status
            .code()
    };
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["-V"]), Some(0));
    assert_eq!(code(&["serve", "--print-config"]), Some(0));
    assert_eq!(code(&["serve", "--no-such-flag"]), Some(2));
    assert_eq!(code(&["check"]), Some(78));
    assert_eq!(code(&["run", "-c", "missing.toml"]), Some(78));
    assert_eq!(code(&["serve", "missing"]), Some(78));
    assert_eq!(code(&["serve", "--drain=5"]), Some(78));
}

#[test]
fn a_one_liner_grows_into_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_beltway"))
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("it is text")
    };
    let flags = [
        "serve",
        ".",
        "--no-etag",
        "--cors",
        "--workers=2",
        "-l",
        "[::1]:0",
        "--print-config",
    ];
    let printed = run(&flags);
    fs::write(directory.path().join("beltway.toml"), &printed).expect("it can be written");
    assert_eq!(run(&["run", "--print-config"]), printed);
    assert_eq!(run(&["show"]), printed);
    assert!(run(&["check"]).starts_with("ok: beltway.toml: 1 site, 1 listener, 0 routes\n"));
}

/// The unit with this program in the place of the installed one.
fn unit(name: &str) -> String {
    let path = conf().join("systemd").join(name);
    let text = fs::read_to_string(path).expect("it is there");
    text.replace("/usr/local/bin/beltway", env!("CARGO_BIN_EXE_beltway"))
}

#[test]
fn the_commands_of_the_unit_are_understood() {
    let unit = unit("beltway.service");
    let commands = unit.lines().filter_map(|line| {
        let (key, command) = line.split_once('=')?;
        ["ExecStart", "ExecReload"]
            .contains(&key)
            .then_some(command)
    });
    let mut asked = 0;
    for command in commands {
        let mut words = command.split(' ');
        let program = words.next().expect("a command has a program");
        let output = Command::new(program)
            .args(words)
            .arg("--help")
            .output()
            .expect("the program starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}\n{errors}");
        asked += 1;
    }
    assert_eq!(asked, 2);
}

/// On a machine without systemd there is nobody to ask.
#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let directory = tempfile::tempdir().expect("a directory");
    let units = ["beltway.service", "beltway.socket"].map(|name| {
        let path = directory.path().join(name);
        fs::write(&path, unit(name)).expect("it can be written");
        path
    });
    let Ok(output) = Command::new("systemd-analyze")
        .arg("verify")
        .args(&units)
        .output()
    else {
        return;
    };
    // What other units of the machine are wrong with is none of ours.
    let ours: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.contains("beltway"))
        .map(str::to_owned)
        .collect();
    assert_eq!(ours, [""; 0]);
}

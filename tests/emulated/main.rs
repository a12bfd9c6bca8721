//! What the running machine may lack: TLS of the kernel (kTLS), and memory that is short, tried in an
//! emulated one.
//!
//! The machine is `qemu-system-x86_64` with a kernel of Debian and a file system in memory that holds
//! the program, this very test (its parts [`guest`] and [`sweep`]) and what both need. `.ci/emulated` gets what it takes;
//! without it the test is skipped and says so.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking and explain on standard error"
)]

#[path = "../e2e/support/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the helpers of all end-to-end tests, of which this one needs a few"
)]
mod support;

mod guest;
mod machine;
mod sweep;

use std::env;

use machine::{Equipment, Machine};

/// Modules of the kernel that the ciphers take, besides `tls` itself.
const MODULES: [&str; 10] = [
    "tls",
    "gcm",
    "ctr",
    "ghash-generic",
    "cryptd",
    "aesni-intel",
    "chacha_generic",
    "poly1305_generic",
    "chacha20poly1305",
    "crypto_simd",
];

#[test]
fn the_kernel_encrypts_in_an_emulated_machine() {
    if env::var_os(machine::INSIDE).is_some() {
        guest::the_kernel_encrypts();
        return;
    }
    let equipment = Equipment {
        memory_mib: 1024,
        modules: &MODULES,
        disk: None,
    };
    run(
        "kTLS",
        &equipment,
        "the_kernel_encrypts_in_an_emulated_machine",
    );
}

#[test]
fn a_sweep_over_more_than_there_is_memory_in_an_emulated_machine() {
    if env::var_os(machine::INSIDE).is_some() {
        sweep::leaves_what_everybody_wants();
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(disk) = sweep::disk(directory.path()) else {
        crate::support::skipped("mke2fs isn't installed, so there is no disk for it");
        return;
    };
    let equipment = Equipment {
        memory_mib: sweep::MEMORY_MIB,
        modules: &["virtio_pci", "virtio_blk"],
        disk: Some(&disk),
    };
    run(
        "a sweep while memory is short",
        &equipment,
        "a_sweep_over_more_than_there_is_memory_in_an_emulated_machine",
    );
}

/// Runs a test in a machine, where there is one.
fn run(what: &str, equipment: &Equipment<'_>, test: &str) {
    let machine = match Machine::find() {
        Ok(machine) => machine,
        Err(why) => {
            crate::support::skipped(format_args!(
                "{what} is untested here: {why}; .ci/emulated gets what it takes"
            ));
            return;
        }
    };
    let said = machine.run(equipment, test);
    eprintln!("{said}");
    assert!(
        said.contains("1 passed") && said.contains("THE TEST ENDED WITH 0"),
        "the test in the emulated machine failed"
    );
}

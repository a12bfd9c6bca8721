//! What the running kernel may lack: TLS of the kernel (kTLS), tried in an emulated machine.
//!
//! The machine is `qemu-system-x86_64` with a kernel of Debian and a file system in memory that holds
//! the program, this very test (its part [`guest`]) and what both need. `.ci/emulated` gets what it takes;
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

use std::env;

use machine::Machine;

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
    let machine = match Machine::find() {
        Ok(machine) => machine,
        Err(why) => {
            eprintln!("SKIPPED, kTLS is untested here: {why}; .ci/emulated gets what it takes");
            return;
        }
    };
    let said = machine.run(&MODULES, "the_kernel_encrypts_in_an_emulated_machine");
    eprintln!("{said}");
    assert!(
        said.contains("1 passed") && said.contains("THE TEST ENDED WITH 0"),
        "the test in the emulated machine failed"
    );
}

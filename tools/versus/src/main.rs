//! Measures Beltway beside its peers.
mod body;
mod generate;
mod histogram;
mod procfs;
use clap::Parser;
#[derive(Parser)]
enum Cmd { Generate(generate::GenerateOptions) }
fn main() {
    let Cmd::Generate(o) = Cmd::parse();
    match generate::run(&o) { Ok(r) => println!("{}", serde_json::to_string_pretty(&r).unwrap()), Err(e) => {eprintln!("{e}"); std::process::exit(1)} }
}

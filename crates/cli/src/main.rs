//! The binary `trestle`: arguments, run files, words for people. It parses, calls and prints.
//!
//! Owns what a person types and reads. May not know any decision of the protocol.

mod args;
mod asked;
mod attend;
mod chaos;
mod device;
mod failure;
mod figures;
mod generate;
mod inspect;
mod interrupt;
mod join;
mod output;
mod overrides;
mod picture;
mod plan;
mod profile;
mod progress;
mod rehearse;
mod run;
mod run_file;
mod serve;
mod simulate;
mod standing;
mod swarm;
mod train;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Arguments, Command, CompletionsArgs};
use crate::failure::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Completions(args) => completions(&args),
        Command::Train(args) => train::train(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Join(args) => join::join(&args),
        Command::Rehearse(args) => rehearse::rehearse(&args),
        Command::Generate(args) => generate::generate(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Profile(args) => profile::profile(&args),
        Command::Simulate(args) => simulate::simulate(&args),
    }
}

fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    clap_complete::generate(args.shell, &mut Arguments::command(), "trestle", &mut std::io::stdout());
    Ok(())
}

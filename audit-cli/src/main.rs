//! `audit`: the hosted audit log from the command line.

mod archive;
mod args;
mod bundle;
mod cloudtrail;
mod connect;
mod export;
mod failure;
mod head;
mod import;
mod keys;
mod live;
mod ndjson;
mod operator;
mod present;
mod record;
mod removal;
mod search;
mod stats;
mod tail;
mod tenants;
mod verify;
mod when;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Command, Options};
use crate::failure::{Failure, Outcome};
use crate::present::{Out, clean};

fn main() -> ExitCode {
    let options = Options::parse();
    match run(options) {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Partial) => ExitCode::from(1),
        // Whoever read the output has seen enough.
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to be told when standard error is closed.
            drop(writeln!(
                std::io::stderr(),
                "audit: {}",
                clean(&failure.to_string())
            ));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(options: Options) -> Result<Outcome, Failure> {
    let out = Out::new(options.json, options.quiet);
    let mut connection = options.connection;
    let command = match options.command {
        Command::Verify(args) => match &args.live {
            // Whoever verifies a bundle has no server, and no settings for one.
            None => return verify::run(out, &args),
            Some(url) => {
                live::aim(&mut connection, url, &args.key)?;
                Command::Verify(args)
            }
        },
        command => command,
    };
    // The command runs on this thread, which may block on files and pipes; connections are served by
    // the runtime's own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Failure::Local("a thread can't be started".into(), e))?;
    runtime.block_on(async {
        let client = connect::client(&connection, command.patience())?;
        let outcome = match command {
            Command::Record(args) => record::run(&client, out, *args).await,
            Command::Get(args) => search::get(&client, out, args).await,
            Command::Search(args) => search::run(&client, out, *args).await,
            Command::Tail(args) => tail::run(&client, out, *args).await,
            Command::Stats(args) => stats::run(&client, out, args).await,
            Command::Tenants(command) => tenants::run(&client, out, command).await,
            Command::Keys(command) => keys::run(&client, out, command).await,
            Command::Export(args) => export::run(&client, out, *args).await,
            Command::Import(args) => import::run(&client, out, args).await,
            Command::Prune(args) => removal::prune(&client, out, args).await,
            Command::Erase(args) => removal::erase(&client, out, *args).await,
            Command::Head(args) => head::run(&client, out, args).await,
            Command::DeadLetters(command) => operator::run(&client, out, command).await,
            Command::Verify(args) => {
                let verdict = live::run(&client, out, &args).await;
                let unread = |failure| connect::explain(&connection, failure);
                return verdict.map_err(|failure| Failure::Unread(Box::new(unread(failure))));
            }
            Command::Health => operator::health(&client, out).await,
        };
        outcome.map_err(|failure| connect::explain(&connection, failure))
    })
}

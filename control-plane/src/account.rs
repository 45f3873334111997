//! `hearth account`: the accounts and their access keys, on the command line.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use hearth::{
    auth::credentials::{self, Account, Changed},
    config::AccountsArgs,
};

/// What `hearth account` may be told.
#[derive(Args)]
pub(crate) struct AccountCommand {
    #[command(flatten)]
    accounts: AccountsArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Makes an account; prints its access key as lines for a shell
    Create {
        /// Its number, 12 digits [default: a random one]
        #[arg(long)]
        id: Option<String>,
        /// What you call it
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists the accounts and the public halves of their access keys
    List,
    /// Makes an account a new access key in place of those it has; prints it
    Rotate {
        /// The account's number
        id: String,
        /// Keep the newest key so far beside it
        #[arg(long)]
        keep: bool,
    },
    /// Ends an account's access keys; what it has stays until it is made again
    Delete {
        /// The account's number
        id: String,
    },
}

/// Does what is asked; the exit status is 2 when it makes no sense.
pub(crate) fn main(command: AccountCommand) -> ExitCode {
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let refused = error
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::InvalidInput);
            super::refuse(&error, if refused { 2 } else { 1 })
        }
    }
}

fn run(command: AccountCommand) -> anyhow::Result<()> {
    let accounts = command.accounts;
    let file = accounts.read_file()?;
    let default = accounts.default_account(&file)?;
    let path = accounts.credentials();
    let mut out = io::stdout();
    let change = match command.what {
        What::List => {
            let listed = credentials::list(&path, &default, &file.accounts)?;
            for (id, account) in listed {
                let name = account.name.unwrap_or_else(|| "-".into());
                let place = if account.given { "configured" } else { "kept" };
                let keys = account.access_key_ids.join(",");
                writeln!(out, "{id}\t{name}\t{place}\t{keys}")?;
            }
            return Ok(());
        }
        What::Create { id, name } => Changed::Create { id, name },
        What::Rotate { id, keep } => Changed::Rotate { id, keep },
        What::Delete { id } => Changed::Delete { id },
    };
    let folder = &accounts.data_dir;
    anyhow::ensure!(
        folder.is_dir(),
        "--data-dir {}: there is no such folder",
        folder.display()
    );
    let account = credentials::change(&path, &default, &file.accounts, &change)?;
    match &change {
        Changed::Delete { .. } => writeln!(out, "deleted {}", account.id)?,
        Changed::Create { .. } | Changed::Rotate { .. } => print_key(&mut out, &account)?,
    }
    Ok(())
}

/// As `set -a; eval "$(hearth account create)"` reads it.
fn print_key(out: &mut impl io::Write, account: &Account) -> anyhow::Result<()> {
    let key = account.keys.last().context("the account has no key")?;
    writeln!(out, "HEARTH_ACCOUNT_ID={}", account.id)?;
    writeln!(out, "AWS_ACCESS_KEY_ID={}", key.access_key_id)?;
    writeln!(out, "AWS_SECRET_ACCESS_KEY={}", key.secret_access_key)?;
    Ok(())
}

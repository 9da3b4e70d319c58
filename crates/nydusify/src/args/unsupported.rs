//! Flags of the deployed tool that are understood but not built: giving one, on the command line or through its
//! variable, ends the program before any work.

use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

/// A flag without a meaning yet.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    name: &'static str,
    variable: Option<&'static str>,
    switch: bool,
    /// Values that ask for nothing.
    harmless: &'static [&'static str],
}

impl Flag {
    /// A flag with a value.
    pub const fn value(name: &'static str, variable: &'static str) -> Self {
        Self {
            name,
            variable: Some(variable),
            switch: false,
            harmless: &[""],
        }
    }

    /// A flag that is on or off.
    pub const fn switch(name: &'static str, variable: &'static str) -> Self {
        Self {
            switch: true,
            harmless: &["", "0", "f", "F", "false", "FALSE", "False"],
            ..Self::value(name, variable)
        }
    }

    /// Without a variable.
    pub const fn without_variable(self) -> Self {
        Self {
            variable: None,
            ..self
        }
    }
}

/// The flags of one command.
pub trait Table {
    /// The flags.
    const FLAGS: &'static [Flag];
}

/// Takes the flags of a [`Table`] into a command and remembers the first one given.
#[derive(Clone)]
pub struct Unsupported<T> {
    given: Option<String>,
    table: PhantomData<T>,
}

impl<T> Unsupported<T> {
    /// The first flag given, with both its dashes.
    pub fn given(&self) -> Option<&str> {
        self.given.as_deref()
    }
}

impl<T> fmt::Debug for Unsupported<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unsupported").field(&self.given).finish()
    }
}

impl<T: Table> clap::Args for Unsupported<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        T::FLAGS.iter().fold(command, |command, flag| {
            let mut arg = Arg::new(flag.name)
                .long(flag.name)
                .hide(true)
                .action(ArgAction::Set)
                .value_parser(clap::value_parser!(OsString));
            if let Some(variable) = flag.variable {
                arg = arg.env(variable);
            }
            if flag.switch {
                arg = arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true");
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<T: Table> clap::FromArgMatches for Unsupported<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let asked = |flag: &&Flag| {
            let source = matches.value_source(flag.name);
            let value = matches.get_one::<OsString>(flag.name);
            matches!(
                source,
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            ) && value.is_some_and(|value| !flag.harmless.iter().any(|harmless| value == *harmless))
        };
        let given = T::FLAGS
            .iter()
            .find(asked)
            .map(|flag| format!("--{}", flag.name));
        Ok(Self {
            given,
            table: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

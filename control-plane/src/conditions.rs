//! How it is on simulated hosts: how long what is asked of them takes, and how
//! often it fails.

use std::{io, time::Duration};

/// What every change on a simulated host meets. The default is none of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Conditions {
    /// How long each takes.
    pub delay: Duration,
    /// What part of them fails: 0 none, 1 all.
    pub failures: f64,
}

impl Conditions {
    /// Lets the time pass that a change takes.
    ///
    /// # Errors
    /// When it is one of those that fail.
    pub async fn meet(&self) -> io::Result<()> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if self.failures > 0.0 && rand::random::<f64>() < self.failures {
            return Err(io::Error::other("a simulated failure"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_takes_its_time_and_fails_as_often_as_it_is_said_to() {
        let began = tokio::time::Instant::now();
        let slow = Conditions {
            delay: Duration::from_secs(3),
            failures: 0.0,
        };
        slow.meet().await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        let broken = Conditions {
            failures: 1.0,
            ..Conditions::default()
        };
        broken.meet().await.unwrap_err();
    }
}

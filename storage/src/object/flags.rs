//! The flags and variables that say how S3 is reached: the same for every program of ours that keeps something there.
//!
//! ```text
//!   --s3-endpoint, --aws-region, AWS_… ──clap──▶ S3Flags ── settings ──▶ StoreSettings ──▶ StoreConfig::read
//! ```
//! The variables are those that other S3 tools read, too.

use std::{convert::Infallible, fmt, path::Path, str::FromStr};

use super::config::{StoreSettings, given};

/// How S3 is reached, as it was written.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct S3Flags {
    /// Another S3 server than Amazon's, as http://host:port; AWS_ENDPOINT_URL does the same.
    #[arg(long, env, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// The variable other S3 tools read; `s3_endpoint` wins.
    #[arg(long, env, hide = true)]
    pub aws_endpoint_url: Option<String>,
    /// The region of the bucket (us-east-1).
    #[arg(long, env, value_name = "REGION")]
    pub aws_region: Option<String>,
    /// A PEM file with the authorities by which an https endpoint is believed (Mozilla's list).
    #[arg(long, env, value_name = "FILE")]
    pub aws_ca_bundle: Option<String>,
    /// Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub aws_access_key_id: Option<String>,
    /// See `aws_access_key_id`.
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub aws_secret_access_key: Option<Secret>,
    /// See `aws_access_key_id`.
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub aws_session_token: Option<Secret>,
}

/// A text that no log line shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl S3Flags {
    /// What these say about a store, which `setting` names; the rest is not set.
    #[must_use]
    pub fn settings<'a>(&'a self, setting: &'static str, data_dir: &'a Path) -> StoreSettings<'a> {
        StoreSettings {
            setting,
            s3_endpoint: given(self.s3_endpoint.as_deref()).or(self.aws_endpoint_url.as_deref()),
            aws_region: self.aws_region.as_deref(),
            access_key_id: self.aws_access_key_id.as_deref(),
            secret_access_key: self.aws_secret_access_key.as_ref().map(|secret| &*secret.0),
            ca_bundle: self.aws_ca_bundle.as_deref(),
            session_token: self.aws_session_token.as_ref().map(|secret| &*secret.0),
            ..StoreSettings::none(data_dir)
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_empty_leaves_the_word_to_the_variable_of_other_tools() {
        let flags = S3Flags {
            s3_endpoint: Some(" ".into()),
            aws_endpoint_url: Some("http://a:1".into()),
            ..S3Flags::default()
        };
        assert_eq!(flags.settings("STORE", Path::new(".")).s3_endpoint, Some("http://a:1"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let flags = S3Flags { aws_secret_access_key: Some("hush".parse().unwrap()), ..S3Flags::default() };
        assert!(!format!("{flags:?}").contains("hush"));
        assert_eq!(flags.settings("STORE", Path::new(".")).secret_access_key, Some("hush"));
    }
}

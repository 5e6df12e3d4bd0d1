//! Which store, and how to reach it: the texts of the settings made into one checked value.
//!
//! ```text
//!   STORE=s3://bucket/prefix ─┐
//!   S3_BUCKET=bucket ─────────┼─ StoreSettings ── StoreConfig::read ──▶ S3 | Directory | None
//!   AWS_…, S3_… ──────────────┘        texts                │ readable error
//!                                                           ▼ exit code 2, one line
//! ```

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rusty_s3::{Bucket, UrlStyle};
use url::Url;

use super::name::{KeyLayout, PREFIX_BYTES_MAX, SEGMENT_BYTES_MAX};

/// The region that is asked where AWS_REGION says nothing: stores other than AWS's mostly ignore it.
pub const REGION_DEFAULT: &str = "us-east-1";

/// The folder of the store under the data directory, where no setting names a store.
pub const STORE_FOLDER: &str = "store";

/// The settings as they were found; empty texts count as not set.
#[derive(Clone, Copy)]
pub struct StoreSettings<'a> {
    /// What the setting that names the store is called in messages: STORE, or STATE for the router.
    pub setting: &'static str,
    /// `s3://bucket/prefix`, `file:///dir` or `none`.
    pub store: Option<&'a str>,
    /// S3_BUCKET, which counts where `store` says nothing.
    pub s3_bucket: Option<&'a str>,
    /// S3_ENDPOINT or AWS_ENDPOINT_URL.
    pub s3_endpoint: Option<&'a str>,
    /// AWS_REGION.
    pub aws_region: Option<&'a str>,
    /// S3_KEY_LAYOUT: plain or md5.
    pub s3_key_layout: Option<&'a str>,
    /// S3_ADDRESSING: auto, path or virtual-host.
    pub s3_addressing: Option<&'a str>,
    /// AWS_ACCESS_KEY_ID.
    pub access_key_id: Option<&'a str>,
    /// AWS_SECRET_ACCESS_KEY.
    pub secret_access_key: Option<&'a str>,
    /// AWS_SESSION_TOKEN.
    pub session_token: Option<&'a str>,
    /// AWS_CA_BUNDLE.
    pub ca_bundle: Option<&'a str>,
    /// DATA_DIR: where the store is when nothing names one.
    pub data_dir: &'a Path,
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// None: memory only.
    None,
    /// A directory.
    Directory(PathBuf),
    /// A bucket of S3.
    S3(Box<S3Config>),
}

/// A bucket of S3 and how to reach it. Every combination of fields that this holds can be asked.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Config {
    /// Endpoint, bucket, region and addressing.
    pub bucket: Bucket,
    /// What all names begin with: empty, or ends in `/`.
    pub prefix: String,
    /// How objects are called.
    pub layout: KeyLayout,
    /// `None`: nothing is asked, everything answers that credentials are missing.
    pub credentials: Option<Credentials>,
    /// A file of certificates by which an `https` endpoint is believed; `None` = Mozilla's list.
    pub ca_bundle: Option<PathBuf>,
}

/// An access key. Its secret parts are not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// AWS_ACCESS_KEY_ID.
    pub access_key_id: String,
    /// AWS_SECRET_ACCESS_KEY.
    pub secret_access_key: String,
    /// AWS_SESSION_TOKEN, of temporary credentials.
    pub session_token: Option<String>,
}

/// A setting that makes no sense: its name, the value found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfigError {
    /// Not a store.
    Store {
        /// STORE or STATE.
        setting: &'static str,
        /// Found.
        found: String,
    },
    /// Not a bucket's name.
    Bucket {
        /// STORE, STATE or S3_BUCKET.
        setting: &'static str,
        /// Found.
        found: String,
    },
    /// A prefix that some stores would bend, or too long.
    Prefix {
        /// STORE or STATE.
        setting: &'static str,
        /// Found.
        found: String,
    },
    /// Not a directory's path.
    Path {
        /// STORE or STATE.
        setting: &'static str,
        /// Found.
        found: String,
    },
    /// Not the address of a server.
    Endpoint {
        /// Found.
        found: String,
    },
    /// Not a region's name.
    Region {
        /// Found.
        found: String,
    },
    /// Not a key layout.
    Layout {
        /// Found.
        found: String,
    },
    /// Not a way of addressing.
    Addressing {
        /// Found.
        found: String,
    },
    /// Virtual-host addressing of a bucket or an endpoint for which there is no such host name.
    NoHostName {
        /// The bucket.
        bucket: String,
        /// The endpoint.
        endpoint: String,
    },
    /// One half of an access key.
    HalfAKey {
        /// The setting that is there.
        present: &'static str,
        /// The setting that is not.
        missing: &'static str,
    },
}

impl StoreSettings<'_> {
    /// No setting at all.
    #[must_use]
    pub fn none(data_dir: &Path) -> StoreSettings<'_> {
        StoreSettings {
            setting: "STORE",
            store: None,
            s3_bucket: None,
            s3_endpoint: None,
            aws_region: None,
            s3_key_layout: None,
            s3_addressing: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            ca_bundle: None,
            data_dir,
        }
    }
}

impl StoreConfig {
    /// Reads the settings: `store`, else `s3_bucket`, else a directory under `data_dir`.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn read(settings: &StoreSettings<'_>) -> Result<Self, StoreConfigError> {
        let setting = settings.setting;
        // Read first: a word that makes no sense is refused also where it would not matter.
        let layout = match given(settings.s3_key_layout) {
            None | Some("plain") => KeyLayout::Plain,
            Some("md5") => KeyLayout::Md5,
            Some(found) => return Err(StoreConfigError::Layout { found: found.into() }),
        };
        let (bucket_setting, found, place) = match (given(settings.store), given(settings.s3_bucket)) {
            (Some("none"), _) => return Ok(Self::None),
            (Some(store), _) => match store.split_once("://") {
                Some(("s3", place)) => (setting, store, place),
                Some(("file", path)) => return directory(setting, store, path),
                _ => return Err(StoreConfigError::Store { setting, found: store.into() }),
            },
            (None, Some(bucket)) => ("S3_BUCKET", bucket, bucket),
            (None, None) => return Ok(Self::Directory(settings.data_dir.join(STORE_FOLDER))),
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if !is_bucket(bucket) {
            return Err(StoreConfigError::Bucket { setting: bucket_setting, found: found.into() });
        }
        Ok(Self::S3(Box::new(S3Config {
            bucket: address(settings, bucket)?,
            prefix: checked_prefix(bucket_setting, prefix)?,
            layout,
            credentials: Credentials::read(settings)?,
            ca_bundle: given(settings.ca_bundle).map(PathBuf::from),
        })))
    }
}

impl Credentials {
    fn read(settings: &StoreSettings<'_>) -> Result<Option<Self>, StoreConfigError> {
        let (id, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
        match (given(settings.access_key_id), given(settings.secret_access_key)) {
            (Some(access_key_id), Some(secret_access_key)) => Ok(Some(Self {
                access_key_id: access_key_id.into(),
                secret_access_key: secret_access_key.into(),
                session_token: given(settings.session_token).map(Into::into),
            })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(StoreConfigError::HalfAKey { present: id, missing: secret }),
            (None, Some(_)) => Err(StoreConfigError::HalfAKey { present: secret, missing: id }),
        }
    }
}

pub(super) fn given(setting: Option<&str>) -> Option<&str> {
    setting.map(str::trim).filter(|text| !text.is_empty())
}

/// `file:///dir`, or `file://./dir` and `file://../dir` from where the program was started.
fn directory(setting: &'static str, found: &str, path: &str) -> Result<StoreConfig, StoreConfigError> {
    let is_path = path.starts_with('/') || path.starts_with("./") || path.starts_with("../");
    if !is_path {
        return Err(StoreConfigError::Path { setting, found: found.into() });
    }
    Ok(StoreConfig::Directory(PathBuf::from(path)))
}

/// As loose as S3 itself once was; what is wrong beyond that, the store will say.
fn is_bucket(name: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (3..=255).contains(&name.len()) && name.bytes().all(is_legal) && !name.starts_with('.') && !name.contains("..")
}

fn checked_prefix(setting: &'static str, found: &str) -> Result<String, StoreConfigError> {
    let prefix = found.strip_suffix('/').unwrap_or(found);
    if prefix.is_empty() {
        return Ok(String::new());
    }
    let is_legal = prefix.len() < PREFIX_BYTES_MAX
        && prefix.split('/').all(|segment| !matches!(segment, "" | "." | "..") && segment.len() <= SEGMENT_BYTES_MAX)
        && !prefix.chars().any(char::is_control);
    if !is_legal {
        return Err(StoreConfigError::Prefix { setting, found: found.into() });
    }
    Ok(format!("{prefix}/"))
}

/// Endpoint, addressing and region. An endpoint of one's own is addressed by path, since few have a name for each
/// bucket; AWS by host, unless the bucket's name does not fit its certificate.
fn address(settings: &StoreSettings<'_>, bucket: &str) -> Result<Bucket, StoreConfigError> {
    let region = given(settings.aws_region).unwrap_or(REGION_DEFAULT);
    if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(StoreConfigError::Region { found: region.into() });
    }
    let own = given(settings.s3_endpoint);
    let endpoint = match own {
        Some(found) => found.to_owned(),
        None if region.starts_with("cn-") => format!("https://s3.{region}.amazonaws.com.cn"),
        None => format!("https://s3.{region}.amazonaws.com"),
    };
    let refused = || StoreConfigError::Endpoint { found: endpoint.clone() };
    let url: Url = endpoint.parse().map_err(|_| refused())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(refused());
    }
    let fits_a_certificate =
        bucket.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let style = match given(settings.s3_addressing) {
        None | Some("auto") if own.is_none() && fits_a_certificate => UrlStyle::VirtualHost,
        None | Some("auto" | "path") => UrlStyle::Path,
        Some("virtual-host") => UrlStyle::VirtualHost,
        Some(found) => return Err(StoreConfigError::Addressing { found: found.into() }),
    };
    Bucket::new(url, style, bucket.to_owned(), region.to_owned())
        .map_err(|_| StoreConfigError::NoHostName { bucket: bucket.into(), endpoint: endpoint.clone() })
}

impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
            Self::S3(s3) => write!(f, "s3://{}/{}", s3.bucket.name(), s3.prefix),
        }
    }
}

impl fmt::Display for StoreConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store { setting, found } => {
                write!(f, "{setting}={found}: a store is s3://bucket/prefix, file:///directory or none")
            }
            Self::Bucket { setting, found } => write!(
                f,
                "{setting}={found}: the name of a bucket has 3 to 63 characters, lower-case letters, digits, '-' and '.'"
            ),
            Self::Prefix { setting, found } => write!(
                f,
                "{setting}: prefix {}: at most {} bytes, and no empty, '.' or '..' part between slashes",
                found.escape_debug(),
                PREFIX_BYTES_MAX - 1,
            ),
            Self::Path { setting, found } => {
                write!(f, "{setting}={found}: a path begins with / or ./ as in file:///var/lib/milena")
            }
            Self::Endpoint { found } => {
                write!(f, "S3_ENDPOINT={found}: an endpoint is http://host:port or https://host:port")
            }
            Self::Region { found } => {
                write!(f, "AWS_REGION={found}: a region is letters, digits and '-', as in eu-west-1")
            }
            Self::Layout { found } => write!(f, "S3_KEY_LAYOUT={found}: plain and md5 are allowed"),
            Self::Addressing { found } => {
                write!(f, "S3_ADDRESSING={found}: auto, path and virtual-host are allowed")
            }
            Self::NoHostName { bucket, endpoint } => write!(
                f,
                "S3_ADDRESSING=virtual-host: there is no host named {bucket} under {endpoint}; set S3_ADDRESSING=path"
            ),
            Self::HalfAKey { present, missing } => {
                write!(f, "{missing} is not set and {present} is; set both, or none of them")
            }
        }
    }
}

impl std::error::Error for StoreConfigError {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("base_url", &self.bucket.base_url().as_str())
            .field("prefix", &self.prefix)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for StoreSettings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings")
            .field("store", &self.store)
            .field("s3_bucket", &self.s3_bucket)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> StoreSettings<'static> {
        StoreSettings::none(Path::new("./milena-data"))
    }

    fn s3(settings: &StoreSettings<'_>) -> S3Config {
        match StoreConfig::read(settings).unwrap() {
            StoreConfig::S3(s3) => *s3,
            other => panic!("{other}"),
        }
    }

    fn refused(settings: &StoreSettings<'_>) -> String {
        StoreConfig::read(settings).unwrap_err().to_string()
    }

    #[test]
    fn a_store_is_found_by_url_then_by_bucket_then_under_the_data_directory() {
        let shown = |settings: StoreSettings<'_>| StoreConfig::read(&settings).unwrap().to_string();
        assert_eq!(shown(none()), "file://./milena-data/store");
        assert_eq!(shown(StoreSettings { s3_bucket: Some("kv-prod"), ..none() }), "s3://kv-prod/");
        assert_eq!(
            shown(StoreSettings { s3_bucket: Some("kv-prod"), store: Some("s3://other/a/b"), ..none() }),
            "s3://other/a/b/"
        );
        assert_eq!(shown(StoreSettings { s3_bucket: Some("kv-prod"), store: Some("none"), ..none() }), "none");
        assert_eq!(shown(StoreSettings { store: Some("file:///var/lib/x"), ..none() }), "file:///var/lib/x");
        assert_eq!(shown(StoreSettings { store: Some(""), ..none() }), "file://./milena-data/store");
    }

    #[test]
    fn an_endpoint_of_ones_own_is_addressed_by_path_and_aws_by_host() {
        let url = |settings: StoreSettings<'_>| s3(&settings).bucket.object_url("k").to_string();
        let aws = StoreSettings { store: Some("s3://kv-prod"), aws_region: Some("eu-west-1"), ..none() };
        assert_eq!(url(aws), "https://kv-prod.s3.eu-west-1.amazonaws.com/k");
        assert_eq!(url(StoreSettings { aws_region: None, ..aws }), "https://kv-prod.s3.us-east-1.amazonaws.com/k");
        assert_eq!(
            url(StoreSettings { store: Some("s3://kv.prod"), ..aws }),
            "https://s3.eu-west-1.amazonaws.com/kv.prod/k"
        );
        let own = StoreSettings { s3_endpoint: Some("http://127.0.0.1:8333"), ..aws };
        assert_eq!(url(own), "http://127.0.0.1:8333/kv-prod/k");
        let named = StoreSettings { s3_endpoint: Some("http://s3.local:8333"), ..aws };
        assert_eq!(
            url(StoreSettings { s3_addressing: Some("virtual-host"), ..named }),
            "http://kv-prod.s3.local:8333/k"
        );
        assert_eq!(
            refused(&StoreSettings { s3_addressing: Some("virtual-host"), ..own }),
            "S3_ADDRESSING=virtual-host: there is no host named kv-prod under http://127.0.0.1:8333; set S3_ADDRESSING=path"
        );
    }

    #[test]
    fn a_setting_that_makes_no_sense_is_named_with_what_was_found_and_what_is_allowed() {
        let bucket = StoreSettings { s3_bucket: Some("kv-prod"), ..none() };
        let cases = [
            (
                StoreSettings { store: Some("gs://x"), ..none() },
                "STORE=gs://x: a store is s3://bucket/prefix, file:///directory or none",
            ),
            (
                StoreSettings { store: Some("file://data"), setting: "STATE", ..none() },
                "STATE=file://data: a path begins with / or ./ as in file:///var/lib/milena",
            ),
            (
                StoreSettings { s3_bucket: Some("a b"), ..none() },
                "S3_BUCKET=a b: the name of a bucket has 3 to 63 characters, lower-case letters, digits, '-' and '.'",
            ),
            (
                StoreSettings { store: Some("s3://kv-prod/a//b"), ..none() },
                "STORE: prefix a//b: at most 511 bytes, and no empty, '.' or '..' part between slashes",
            ),
            (
                StoreSettings { s3_endpoint: Some("localhost:9000"), ..bucket },
                "S3_ENDPOINT=localhost:9000: an endpoint is http://host:port or https://host:port",
            ),
            (
                StoreSettings { aws_region: Some("eu west"), ..bucket },
                "AWS_REGION=eu west: a region is letters, digits and '-', as in eu-west-1",
            ),
            (StoreSettings { s3_key_layout: Some("sha"), ..bucket }, "S3_KEY_LAYOUT=sha: plain and md5 are allowed"),
            (
                StoreSettings { s3_addressing: Some("host"), ..bucket },
                "S3_ADDRESSING=host: auto, path and virtual-host are allowed",
            ),
            (
                StoreSettings { access_key_id: Some("AKIA"), ..bucket },
                "AWS_SECRET_ACCESS_KEY is not set and AWS_ACCESS_KEY_ID is; set both, or none of them",
            ),
        ];
        for (settings, text) in cases {
            assert_eq!(refused(&settings), text);
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let config = s3(&StoreSettings {
            s3_bucket: Some("kv-prod"),
            access_key_id: Some("AKIA"),
            secret_access_key: Some("hush"),
            session_token: Some("hush"),
            ..none()
        });
        assert!(!format!("{config:?} {:?}", config.credentials).contains("hush"));
    }
}

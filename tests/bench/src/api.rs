//! A client of the EC2 API that costs next to nothing: one signed POST on a
//! connection of its own.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use anyhow::{Context, Result, bail};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// Whom to call, and as whom.
pub(crate) struct Client {
    pub(crate) address: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// An answer, and when its call was sent and it was there.
pub(crate) struct Answer {
    pub(crate) sent: Timestamp,
    pub(crate) answered: Timestamp,
    pub(crate) body: String,
}

impl Answer {
    /// The text of the first element of this name.
    pub(crate) fn element(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.body.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0)
    }
}

const SCOPE: &str = "us-east-1/ec2/aws4_request";
const TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

fn mac(key: &[u8], text: &str) -> Result<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
    mac.update(text.as_bytes());
    Ok(mac.finalize().into_bytes().to_vec())
}

impl Client {
    /// Calls an action; `parameters` need no escaping.
    pub(crate) fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Answer> {
        let mut form = format!("Action={action}&Version=2016-11-15");
        for (name, value) in parameters {
            form += &format!("&{name}={value}");
        }
        let request = self.sign(&form)?;
        let sent = Timestamp::now();
        let mut stream = TcpStream::connect(&self.address)?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let answered = Timestamp::now();
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        if !head.starts_with("HTTP/1.1 200 ") {
            bail!("{action}: {head}\n{body}");
        }
        Ok(Answer {
            sent,
            answered,
            body: body.to_owned(),
        })
    }

    fn sign(&self, form: &str) -> Result<String> {
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &time[..8];
        let headers = format!(
            "content-type:{TYPE}\nhost:{}\nx-amz-date:{time}\n",
            self.address
        );
        let signed = "content-type;host;x-amz-date";
        let canonical = format!("POST\n/\n\n{headers}\n{signed}\n{}", hash(form));
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{time}\n{day}/{SCOPE}\n{}",
            hash(&canonical)
        );
        let mut key = mac(format!("AWS4{}", self.secret_key).as_bytes(), day)?;
        for part in SCOPE.split('/') {
            key = mac(&key, part)?;
        }
        let signature = hex::encode(mac(&key, &to_sign)?);
        Ok(format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: {TYPE}\r\nContent-Length: {}\r\n\
             X-Amz-Date: {time}\r\nConnection: close\r\nAuthorization: AWS4-HMAC-SHA256 \
             Credential={}/{day}/{SCOPE}, SignedHeaders={signed}, Signature={signature}\r\n\r\n{form}",
            self.address,
            form.len(),
            self.access_key,
        ))
    }
}

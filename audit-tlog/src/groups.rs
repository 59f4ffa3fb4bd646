//! Values of the groups that are objects: `actor`, `resource` and `context`.
//!
//! Keys stand in the order of the fields here, an absent field is left out, strings are escaped as
//! RFC 8785 §3.2.2.2 says, and there is no white space: each content has one text, which is what
//! the log hashes. Values are written as given; limits are checked before.

use crate::json::write_string;

/// The `actor` group: who did it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actor<'a> {
    /// The actor's identifier.
    pub user_id: Option<&'a str>,
    /// `user`, `service`, `system`, `agent` or `anonymous`, with its default filled in.
    pub actor_type: Option<&'a str>,
    /// The actor's display name.
    pub actor_name: Option<&'a str>,
    /// The impersonated or delegating principal.
    pub on_behalf_of: Option<&'a str>,
}

/// The `resource` group: what it was done to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// The kind of thing.
    pub resource_type: Option<&'a str>,
    /// Its identifier within that kind.
    pub resource_id: Option<&'a str>,
    /// Its display name.
    pub resource_name: Option<&'a str>,
    /// The other targets, in the client's order; an empty list is absent. The key is
    /// `related_resources`.
    pub related: &'a [Related<'a>],
}

/// One of the other targets in [`Resource::related`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Related<'a> {
    /// The kind of thing; the key is `type`.
    pub kind: &'a str,
    /// Its identifier within that kind.
    pub id: &'a str,
    /// Its display name.
    pub name: Option<&'a str>,
}

/// The `context` group: where it came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context<'a> {
    /// The session.
    pub session_id: Option<&'a str>,
    /// The request.
    pub request_id: Option<&'a str>,
    /// The distributed trace, W3C's by convention.
    pub trace_id: Option<&'a str>,
    /// The client's `User-Agent`.
    pub user_agent: Option<&'a str>,
    /// The client's address, already in its one spelling: IPv4 dotted, IPv6 as RFC 5952 says and
    /// always in hexadecimal.
    pub ip_address: Option<&'a str>,
}

impl Actor<'_> {
    /// The group's value as text, or `None` when nothing is in it.
    #[must_use]
    pub fn value(&self) -> Option<String> {
        value(|out| self.write(out))
    }

    /// Appends the group's value; writes nothing and returns `false` when nothing is in it.
    pub fn write(&self, out: &mut String) -> bool {
        let mut object = Object::new(out);
        object.field("user_id", self.user_id);
        object.field("actor_type", self.actor_type);
        object.field("actor_name", self.actor_name);
        object.field("on_behalf_of", self.on_behalf_of);
        object.end()
    }
}

impl Resource<'_> {
    /// The group's value as text, or `None` when nothing is in it.
    #[must_use]
    pub fn value(&self) -> Option<String> {
        value(|out| self.write(out))
    }

    /// Appends the group's value; writes nothing and returns `false` when nothing is in it.
    pub fn write(&self, out: &mut String) -> bool {
        let mut object = Object::new(out);
        object.field("resource_type", self.resource_type);
        object.field("resource_id", self.resource_id);
        object.field("resource_name", self.resource_name);
        if !self.related.is_empty() {
            object.key("related_resources");
            Related::write_all(self.related, object.out);
        }
        object.end()
    }
}

impl Related<'_> {
    /// Appends an array of related resources, as it stands in the group `resource`; `[]` for an
    /// empty list.
    pub fn write_all(related: &[Related<'_>], out: &mut String) {
        out.push('[');
        for (i, one) in related.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            let mut object = Object::new(out);
            object.field("type", Some(one.kind));
            object.field("id", Some(one.id));
            object.field("name", one.name);
            object.end();
        }
        out.push(']');
    }
}

impl Context<'_> {
    /// The group's value as text, or `None` when nothing is in it.
    #[must_use]
    pub fn value(&self) -> Option<String> {
        value(|out| self.write(out))
    }

    /// Appends the group's value; writes nothing and returns `false` when nothing is in it.
    pub fn write(&self, out: &mut String) -> bool {
        let mut object = Object::new(out);
        object.field("session_id", self.session_id);
        object.field("request_id", self.request_id);
        object.field("trace_id", self.trace_id);
        object.field("user_agent", self.user_agent);
        object.field("ip_address", self.ip_address);
        object.end()
    }
}

fn value(write: impl FnOnce(&mut String) -> bool) -> Option<String> {
    let mut text = String::new();
    write(&mut text).then_some(text)
}

/// Writes an object whose brace is opened by its first field.
struct Object<'o> {
    out: &'o mut String,
    open: bool,
}

impl<'o> Object<'o> {
    fn new(out: &'o mut String) -> Self {
        Self { out, open: false }
    }

    fn key(&mut self, name: &str) {
        self.out.push(if self.open { ',' } else { '{' });
        self.open = true;
        write_string(self.out, name);
        self.out.push(':');
    }

    fn field(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.key(name);
            write_string(self.out, value);
        }
    }

    fn end(self) -> bool {
        if self.open {
            self.out.push('}');
        }
        self.open
    }
}

//! Configuration: one declaration gives the struct, its defaults, strict parsing and the JSON Schema that `plugin inspect` shows.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
pub use serde_json::Value as Json;

use crate::{Error, Result};

/// A plugin's configuration. [`config!`](crate::config!) implements it.
pub trait Config: DeserializeOwned + Default + 'static {
    /// What the plugin is: the struct's documentation.
    fn summary() -> String;

    /// JSON Schema of the configuration.
    fn schema() -> Json;

    /// Reads a configuration; the empty text gives the defaults. Unknown names are errors that list the known ones.
    ///
    /// # Errors
    /// With what does not fit, and where.
    fn parse(json: &str) -> Result<Self> {
        if json.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(json).map_err(|e| Error::config(format!("the configuration does not fit: {e}")))
    }
}

/// A type that a configuration's field may have.
pub trait Field: Serialize {
    /// Its JSON Schema.
    fn field_schema() -> Json;
}

macro_rules! field_types {
    ($($name:literal: $($ty:ty),*;)*) => {
        $($(impl Field for $ty {
            fn field_schema() -> Json {
                serde_json::json!({ "type": $name })
            }
        })*)*
    };
}

field_types! {
    "integer": u8, u32, u64, usize, i32, i64;
    "number": f32, f64;
    "boolean": bool;
    "string": String;
    "object": Json;
}

impl<T: Field> Field for Option<T> {
    fn field_schema() -> Json {
        serde_json::json!({ "anyOf": [T::field_schema(), { "type": "null" }] })
    }
}

impl<T: Field> Field for Vec<T> {
    fn field_schema() -> Json {
        serde_json::json!({ "type": "array", "items": T::field_schema() })
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn field_schema() -> Json {
        serde_json::json!({ "type": "object", "additionalProperties": T::field_schema() })
    }
}

/// One field's schema with its documentation and default.
#[doc(hidden)]
pub fn describe<T: Field>(doc: &str, default: &T) -> Json {
    let mut schema = T::field_schema();
    if let Some(object) = schema.as_object_mut() {
        object.insert("description".into(), doc.trim().into());
        object.insert("default".into(), serde_json::to_value(default).unwrap_or(Json::Null));
    }
    schema
}

/// Declares a configuration: a struct whose fields have documentation and defaults, or a choice among words.
///
/// ```ignore
/// config! {
///     /// What the plugin does, in one sentence.
///     pub struct Scaled {
///         /// What the field means.
///         factor: f64 = 1.0,
///         /// One of the words below.
///         shape: Shape = Shape::Linear,
///     }
/// }
///
/// config! {
///     /// The first word is the default.
///     pub enum Shape { Linear = "linear", Cosine = "cosine" }
/// }
/// ```
///
/// Names that are not declared are errors. A struct that ends with `..` ignores them instead, for configurations that others write
/// (a checkpoint's `config.json`). Either can be the type of another configuration's field.
#[macro_export]
macro_rules! config {
    (@struct [$($strict:meta)?] [$open:literal] $($(#[doc = $doc:literal])+)? $vis:vis struct $name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident : $ty:ty = $default:expr,)*
    }) => {
        $($(#[doc = $doc])+)?
        #[derive(Clone, Debug, $crate::serde::Deserialize, $crate::serde::Serialize)]
        #[serde(crate = "swift_sdk::serde", default $(, $strict)?)]
        $vis struct $name {
            $($(#[doc = $field_doc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::Config for $name {
            fn summary() -> String {
                concat!($($($doc, "\n"),+)?).trim().to_string()
            }

            fn schema() -> $crate::Json {
                let defaults = Self::default();
                let mut fields = $crate::serde_json::Map::new();
                $(fields.insert(
                    stringify!($field).trim_start_matches("r#").to_string(),
                    $crate::config_schema(concat!($($field_doc, "\n"),*), &defaults.$field),
                );)*
                $crate::serde_json::json!({ "type": "object", "properties": fields, "additionalProperties": $open })
            }
        }

        impl $crate::Field for $name {
            fn field_schema() -> $crate::Json {
                <Self as $crate::Config>::schema()
            }
        }
    };
    ($(#[doc = $doc:literal])+ $vis:vis struct $name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident : $ty:ty = $default:expr),* $(,)?
    }) => {
        $crate::config! { @struct [deny_unknown_fields] [false] $(#[doc = $doc])+ $vis struct $name {
            $($(#[doc = $field_doc])* $field: $ty = $default,)*
        } }
    };
    ($(#[doc = $doc:literal])+ $vis:vis struct $name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident : $ty:ty = $default:expr,)* ..
    }) => {
        $crate::config! { @struct [] [true] $(#[doc = $doc])+ $vis struct $name {
            $($(#[doc = $field_doc])* $field: $ty = $default,)*
        } }
    };
    ($(#[doc = $doc:literal])* $vis:vis enum $name:ident {
        $(#[doc = $first_doc:literal])* $first:ident = $first_text:literal
        $(, $(#[doc = $more_doc:literal])* $more:ident = $more_text:literal)* $(,)?
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, $crate::serde::Deserialize, $crate::serde::Serialize)]
        #[serde(crate = "swift_sdk::serde")]
        $vis enum $name {
            $(#[doc = $first_doc])*
            #[default]
            #[serde(rename = $first_text)]
            $first,
            $($(#[doc = $more_doc])*
            #[serde(rename = $more_text)]
            $more,)*
        }

        impl $crate::Field for $name {
            fn field_schema() -> $crate::Json {
                $crate::serde_json::json!({ "enum": [$first_text $(, $more_text)*] })
            }
        }
    };
}

//! The query of `GET keypairs`: pages, and filters as the platform's clients spell them.
//!
//! A list is flattened with numbers from 1: `filters.1.name=keyNames&filters.1.values.1=my-test`.

use std::collections::BTreeMap;

use super::error::ApiError;

/// What part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// The page, from 1.
    pub page_number: usize,
    /// How many stand on a page: 10 to 100.
    pub page_size: usize,
    /// Lists of names, each of which must hold the one that is shown.
    key_names: Vec<Vec<String>>,
}

impl ListQuery {
    /// Reads the names and values of a query; those it does not know are ignored.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where a number is none or out of range, or a filter is unknown or incomplete.
    pub fn read(pairs: &[(String, String)]) -> Result<Self, ApiError> {
        let mut query = Self { page_number: 1, page_size: 20, key_names: Vec::new() };
        let mut filters: BTreeMap<&str, Filter> = BTreeMap::new();
        for (name, value) in pairs {
            let parts: Vec<&str> = name.split('.').collect();
            match parts.as_slice() {
                ["pageNumber"] => query.page_number = number(name, value, 1, usize::MAX)?,
                ["pageSize"] => query.page_size = number(name, value, 10, 100)?,
                ["filters", index, "name"] => filters.entry(index).or_default().name = Some(value),
                ["filters", index, "operator"] if value != "eq" => {
                    return Err(invalid(format!("filters.{index}.operator is not 'eq'")));
                }
                ["filters", index, "values", _] => {
                    filters.entry(index).or_default().values.push(value.clone());
                }
                _ => {}
            }
        }
        for (index, filter) in filters {
            match (filter.name, filter.values.is_empty()) {
                (Some("keyNames"), false) => query.key_names.push(filter.values),
                (Some("keyNames"), true) => {
                    return Err(invalid(format!("filters.{index} has no values")));
                }
                _ => return Err(invalid(format!("filters.{index}.name is not 'keyNames'"))),
            }
        }
        Ok(query)
    }

    /// Whether the filters let this name pass.
    pub fn wants(&self, key_name: &str) -> bool {
        self.key_names.iter().all(|names| names.iter().any(|name| name == key_name))
    }

    /// How many stand on the pages before.
    pub fn skipped(&self) -> usize {
        (self.page_number - 1).saturating_mul(self.page_size)
    }
}

#[derive(Default)]
struct Filter<'a> {
    name: Option<&'a str>,
    values: Vec<String>,
}

fn number(name: &str, text: &str, least: usize, most: usize) -> Result<usize, ApiError> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ if most == usize::MAX => Err(invalid(format!("{name} is not an integer from {least}"))),
        _ => Err(invalid(format!("{name} is not an integer from {least} to {most}"))),
    }
}

fn invalid(what: String) -> ApiError {
    ApiError::InvalidArgument(what)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ListQuery, ApiError> {
        let owned: Vec<_> = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        ListQuery::read(&owned)
    }

    #[test]
    fn pages() {
        let query = read(&[("regionId", "x")]).unwrap();
        assert_eq!((query.page_number, query.page_size, query.skipped()), (1, 20, 0));
        assert_eq!(read(&[("pageNumber", "3"), ("pageSize", "10")]).unwrap().skipped(), 20);
        for (name, value) in [
            ("pageNumber", "0"),
            ("pageNumber", "x"),
            ("pageSize", "9"),
            ("pageSize", "101"),
            ("pageSize", ""),
        ] {
            assert!(read(&[(name, value)]).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn filters() {
        let query = read(&[
            ("filters.1.name", "keyNames"),
            ("filters.1.operator", "eq"),
            ("filters.1.values.1", "a"),
            ("filters.1.values.2", "b"),
        ])
        .unwrap();
        assert!(query.wants("a") && query.wants("b") && !query.wants("c"));
        assert!(read(&[]).unwrap().wants("c"));
        for bad in [
            vec![("filters.1.name", "colour"), ("filters.1.values.1", "a")],
            vec![("filters.1.values.1", "a")],
            vec![("filters.1.name", "keyNames")],
            vec![("filters.1.name", "keyNames"), ("filters.1.values.1", "a"), ("filters.1.operator", "like")],
        ] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }
}

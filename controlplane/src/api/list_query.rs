//! The query parameters of a list: page numbers, and filters as the platform's clients write them.
//!
//! An array becomes parameters with numbers from 1: `filters.1.name=keyNames&filters.1.values.1=my-test`.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use super::error::ApiError;

/// The query of a request, as axum passes it to a handler.
pub type RawQuery = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The name and value pairs of a query.
///
/// # Errors
/// `INVALID_ARGUMENT` if the query cannot be parsed.
pub fn parse_query_pairs(query: RawQuery) -> Result<Vec<(String, String)>, ApiError> {
    query.map(|Query(pairs)| pairs).map_err(|_| invalid_argument("the query cannot be read".into()))
}

/// The page and the filters that a list request selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// The page number, from 1.
    pub page_number: usize,
    /// The number of entries on a page: 10 to 100.
    pub page_size: usize,
    /// Field names, each with its accepted values. An entry matches if it has one of them.
    filters: Vec<(String, Vec<String>)>,
}

impl ListQuery {
    /// Parses the pairs of a query. `fields` lists the fields by which the list can be filtered. Unknown parameters
    /// are ignored.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if a number is invalid or out of range, or if a filter is unknown or incomplete.
    pub fn from_pairs(pairs: &[(String, String)], fields: &[&str]) -> Result<Self, ApiError> {
        let mut query = Self { page_number: 1, page_size: 20, filters: Vec::new() };
        let mut filters: BTreeMap<&str, Filter> = BTreeMap::new();
        for (name, value) in pairs {
            let parts: Vec<&str> = name.split('.').collect();
            match parts.as_slice() {
                ["pageNumber"] => query.page_number = parse_number_in_range(name, value, 1, usize::MAX)?,
                ["pageSize"] => query.page_size = parse_number_in_range(name, value, 10, 100)?,
                ["filters", index, "name"] => filters.entry(index).or_default().name = Some(value),
                ["filters", index, "operator"] if value != "eq" => {
                    return Err(invalid_argument(format!("filters.{index}.operator is not 'eq'")));
                }
                ["filters", index, "values", _] => {
                    filters.entry(index).or_default().values.push(value.clone());
                }
                _ => {}
            }
        }
        for (index, filter) in filters {
            match filter.name.filter(|name| fields.contains(name)) {
                None => {
                    let fields = fields.join("', '");
                    return Err(invalid_argument(format!("filters.{index}.name is not one of '{fields}'")));
                }
                Some(_) if filter.values.is_empty() => {
                    return Err(invalid_argument(format!("filters.{index} has no values")));
                }
                Some(name) => query.filters.push((name.to_owned(), filter.values)),
            }
        }
        Ok(query)
    }

    /// Whether an entry passes all filters. `field` returns the entry's value of a field.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.filters.iter().all(|(name, values)| values.iter().any(|value| value == field(name)))
    }

    /// The entries of `list` on the selected page.
    pub fn page<'a, T>(&self, list: &'a [T]) -> impl Iterator<Item = &'a T> {
        list.iter().skip((self.page_number - 1).saturating_mul(self.page_size)).take(self.page_size)
    }
}

#[derive(Default)]
struct Filter<'a> {
    name: Option<&'a str>,
    values: Vec<String>,
}

fn parse_number_in_range(name: &str, text: &str, least: usize, most: usize) -> Result<usize, ApiError> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ if most == usize::MAX => Err(invalid_argument(format!("{name} is not an integer from {least}"))),
        _ => Err(invalid_argument(format!("{name} is not an integer from {least} to {most}"))),
    }
}

fn invalid_argument(what: String) -> ApiError {
    ApiError::InvalidArgument(what)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse_list_query(pairs: &[(&str, &str)]) -> Result<ListQuery, ApiError> {
        let owned: Vec<_> = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        ListQuery::from_pairs(&owned, &["keyNames", "status"])
    }

    #[test]
    fn list_query_selects_page() {
        let query = parse_list_query(&[("regionId", "x")]).unwrap();
        assert_eq!((query.page_number, query.page_size), (1, 20));
        let list: Vec<usize> = (0..25).collect();
        let page = |number| {
            let query = parse_list_query(&[("pageNumber", number), ("pageSize", "10")]).unwrap();
            query.page(&list).copied().collect::<Vec<_>>()
        };
        assert_eq!(page("3"), [20, 21, 22, 23, 24]);
        assert!(page("4").is_empty() && page("18446744073709551615").is_empty());
        for (name, value) in [
            ("pageNumber", "0"),
            ("pageNumber", "x"),
            ("pageSize", "9"),
            ("pageSize", "101"),
            ("pageSize", ""),
        ] {
            assert!(parse_list_query(&[(name, value)]).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn list_query_filters_by_field_values() {
        let query = parse_list_query(&[
            ("filters.1.name", "keyNames"),
            ("filters.1.operator", "eq"),
            ("filters.1.values.1", "a"),
            ("filters.1.values.2", "b"),
        ])
        .unwrap();
        assert!(query.matches(|_| "a") && query.matches(|_| "b") && !query.matches(|_| "c"));
        assert!(parse_list_query(&[]).unwrap().matches(|_| "c"));
        for bad in [
            vec![("filters.1.name", "colour"), ("filters.1.values.1", "a")],
            vec![("filters.1.values.1", "a")],
            vec![("filters.1.name", "keyNames")],
            vec![("filters.1.name", "keyNames"), ("filters.1.values.1", "a"), ("filters.1.operator", "like")],
        ] {
            assert!(parse_list_query(&bad).is_err(), "{bad:?}");
        }
    }
}

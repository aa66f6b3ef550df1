"""How text that stands for something else is read: numbers, times, yes and no."""

from typing import Literal

import duckdb

#: words for yes and no, lower-case
YES_NO = (
    ("yes", "no"),
    ("y", "n"),
    ("true", "false"),
    ("t", "f"),
    ("ja", "nein"),
    ("j", "n"),
    ("oui", "non"),
    ("o", "n"),
    ("vrai", "faux"),
    ("wahr", "falsch"),
    ("si", "no"),
    ("sí", "no"),
    ("sì", "no"),
    ("sim", "não"),
    ("sim", "nao"),
    ("ja", "nee"),
    ("ja", "nej"),
    ("tak", "nie"),
    ("evet", "hayır"),
    ("да", "нет"),
)
#: formats of times that DuckDB does not read by itself
FORMATS = (
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %I:%M:%S %p",
    "%Y%m%d%H%M%S",
    "%a %b %d %H:%M:%S %Y",
    "%d %b %Y %H:%M:%S",
    "%d/%b/%Y:%H:%M:%S %z",
)

#: behind or before an amount: a sign, the code of a currency, or per cent
_CODES = "EUR USD GBP CHF JPY CNY SEK NOK DKK PLN CZK HUF RON RUB UAH TRY INR BRL MXN CAD AUD NZD ZAR KRW HKD SGD THB"
_SIGN = f"([€$£¥₹₽₩₺₫฿₴₪%]|{_CODES.replace(' ', '|')}|(US|A|C|R)[$]|kr|zł|Kč|Ft|lei)"
_SPACE = "[ \\x{A0}\\x{202F}]"
#: its digits, by the mark before the decimals: of money one or two, so that three are thousands
_DIGITS = {
    ",": f"([0-9]+|[0-9][0-9]?[0-9]?(([.']|{_SPACE})[0-9][0-9][0-9])+)(,[0-9][0-9]?)?",
    ".": f"([0-9]+|[0-9][0-9]?[0-9]?(([,']|{_SPACE})[0-9][0-9][0-9])+)([.][0-9][0-9]?)?",
}


def readings(
    con: duckdb.DuckDBPyConnection, name: str
) -> tuple[str, Literal["text", "number", "boolean", "time"], str]:
    """Return the expression that reads a text column of the table `raw`, its kind, and what it does.

    The expression has {} in the place of the column; ("{}", "text", "") where the column is no more than text.
    """
    column = '"' + name.replace('"', '""') + '"'
    holds = f"coalesce(bool_and(({{}}) IS NOT NULL) FILTER ({column} IS NOT NULL), false)"
    tests = [
        f"count({column}) > 0 AND {holds.format(f'try_cast({column} AS DOUBLE)')}",
        holds.format(f"try_cast({column} AS TIMESTAMPTZ)"),
        *(holds.format(f"try_strptime({column}, '{text}')") for text in FORMATS),
    ]
    number, time, *formats = con.execute(f"SELECT {', '.join(tests)} FROM raw").fetchall()[0]
    if number:
        return "{}::DOUBLE", "number", "a number that stands there as text"
    if time:
        zoned = con.execute(f"SELECT bool_or(regexp_matches({column}, '(Z|[+-]\\d\\d:?\\d\\d)$')) FROM raw").fetchall()
        return f"{{}}::{'TIMESTAMPTZ' if zoned[0][0] else 'TIMESTAMP'}", "time", "a time that stands there as text"
    for text, fits in zip(FORMATS, formats, strict=True):
        if fits:
            return f"strptime({{}}, '{text}')", "time", f"a time that is written {text}"
    return _amount(con, column) or _yes_or_no(con, column)


def _amount(con: duckdb.DuckDBPyConnection, column: str) -> tuple[str, Literal["number"], str] | None:
    """Return how amounts such as 1.299,00 € or $8.50 are read; None where they are none, or not all of one currency."""
    sign = f"trim(regexp_replace({column}, '[-0-9.,'' \\x{{A0}}\\x{{202F}}]', '', 'g'))"
    for mark, digits in _DIGITS.items():
        written = f"-?({_SIGN}{_SPACE}*-?{digits}|{digits}{_SPACE}*{_SIGN})".replace("'", "''")
        asked = f"bool_and(regexp_full_match(trim({column}), '{written}')), count(DISTINCT {sign}), min({sign})"
        fits, signs, shown = con.execute(f"SELECT {asked} FROM raw").fetchall()[0]
        if fits and signs == 1:
            number = f"regexp_replace({{}}, '[^0-9{mark}-]', '', 'g')"
            number = f"replace({number}, ',', '.')" if mark == "," else number
            return f"{number}::DOUBLE", "number", f"an amount ({shown}) that stands there as text"
    return None


def _yes_or_no(con: duckdb.DuckDBPyConnection, column: str) -> tuple[str, Literal["text", "boolean"], str]:
    found = con.execute(f"SELECT DISTINCT {column} FROM raw WHERE {column} IS NOT NULL LIMIT 3").fetchall()
    words = {str(row[0]) for row in found}
    for yes, no in YES_NO:
        if {word.lower() for word in words} == {yes, no} and len(words) == 2:
            true = next(word for word in words if word.lower() == yes).replace("'", "''")
            return f"{{}} = '{true}'", "boolean", f"'{true}' is true"
    return "{}", "text", ""

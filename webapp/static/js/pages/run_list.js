// On every page: shows what needs a script, and switches the theme.

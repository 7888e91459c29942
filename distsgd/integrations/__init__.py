"""Models and estimators of other frameworks, trained by distsgd: one module a framework, imported when it is used."""

